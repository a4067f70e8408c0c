// What every timed test needs: memory in huge pages, threads that wait quietly, medians, and the speed of plain reads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace kvt::cli {

double seconds_now();  // monotonic

// Middle value; of an even number of values, the lower one. 0 for none.
double median(std::vector<double> values);
// Half the distance between the quartiles, relative to the median: how unsteady the machine was.
double relative_spread(std::vector<double> values);

// Seconds that the calling thread has waited for a core while others ran; 0 if the system does not count them.
double seconds_waited_for_core();

unsigned usable_cores();  // that the operating system lets this process use
std::string cpu_model_name();

// Threads 1 .. n - 1; the caller is thread 0. Between two runs they spin for a moment, then sleep, so that they do not disturb
// whatever else is timed.
class WorkerPool {
 public:
  explicit WorkerPool(unsigned n_threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  unsigned size() const { return n_threads_; }
  // Calls work(thread) once on each thread; returns when all are done.
  void run(const std::function<void(unsigned thread)>& work);

 private:
  void serve(unsigned thread);

  const unsigned n_threads_;
  const std::function<void(unsigned)>* work_ = nullptr;
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<std::uint32_t> n_running_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

// Zeroed memory, aligned to 2 MiB, in huge pages where the system has them. The pool's threads touch equal slices first, which
// spreads the memory over the machine's memory controllers.
class HugeBuffer {
 public:
  HugeBuffer(std::size_t bytes, WorkerPool& pool);
  ~HugeBuffer();
  HugeBuffer(HugeBuffer&& other) noexcept;
  HugeBuffer& operator=(HugeBuffer&&) = delete;

  std::uint8_t* data() const { return data_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Reads memory from end to end, as fast as this machine can: the yardstick for attention that waits for memory.
class StreamTest {
 public:
  explicit StreamTest(WorkerPool& pool);

  // One pass with each access pattern. Returns the bytes per second of the best one.
  double run(WorkerPool& pool);

 private:
  HugeBuffer buffer_;
};

// Bytes of the last-level cache that a core reaches, 0 if the system does not say.
std::size_t last_level_cache_bytes();

}  // namespace kvt::cli
