#include "bench_support.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <utility>

namespace kvt::cli {

namespace {

constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;
constexpr double kSpinSeconds = 50e-6;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until *value differs from old: spins for a moment, then sleeps.
void wait_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  const double end = seconds_now() + kSpinSeconds;
  while (value.load(std::memory_order_acquire) == old) {
    for (int i = 0; i < 32; ++i) relax();
    if (seconds_now() > end) value.wait(old, std::memory_order_acquire);
  }
}

typedef std::uint64_t Line __attribute__((vector_size(64)));

// n_streams equal parts of [from, from + n_lines), read side by side. The sum keeps the compiler from dropping the loads.
template <unsigned kStreams>
std::uint64_t read_lines(const Line* from, std::size_t n_lines) {
  const std::size_t part = n_lines / kStreams;
  Line sum[4] = {};
  for (std::size_t i = 0; i + 4 <= part; i += 4) {
    for (unsigned s = 0; s < kStreams; ++s) {
      const Line* line = from + s * part + i;
      for (unsigned k = 0; k < 4; ++k) sum[k] ^= line[k];
    }
  }
  const Line all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  return all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7];
}

// The same with one stream and a prefetch four kilobytes ahead, for cores whose own prefetcher stops at a page.
std::uint64_t read_lines_ahead(const Line* from, std::size_t n_lines) {
  Line sum[4] = {};
  for (std::size_t i = 0; i + 4 <= n_lines; i += 4) {
    for (unsigned k = 0; k < 4; ++k) {
      __builtin_prefetch(from + i + k + 64);
      sum[k] ^= from[i + k];
    }
  }
  const Line all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  return all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7];
}

std::size_t stream_bytes() {
  // Far larger than the cache, or it would answer.
  const std::size_t wanted = std::clamp(4 * last_level_cache_bytes(), std::size_t{256} << 20, std::size_t{2} << 30);
  return wanted / kHugePageBytes * kHugePageBytes;
}

}  // namespace

double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double relative_spread(std::vector<double> values) {
  if (values.size() < 2) return 0;
  std::sort(values.begin(), values.end());
  const double lower = values[(values.size() - 1) / 4], upper = values[values.size() - 1 - (values.size() - 1) / 4];
  return (upper - lower) / 2 / median(values);
}

double seconds_waited_for_core() {
  // "time on a core, time waiting for one, time slices", in nanoseconds.
  std::ifstream file("/proc/thread-self/schedstat");
  double running = 0, waiting = 0;
  file >> running >> waiting;
  return file ? waiting * 1e-9 : 0;
}

unsigned usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return static_cast<unsigned>(std::max(1, CPU_COUNT(&set)));
  return std::max(1u, std::thread::hardware_concurrency());
}

std::string cpu_model_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("model name") && line.find(": ") != std::string::npos) return line.substr(line.find(": ") + 2);
  }
  return "unknown CPU";
}

std::size_t last_level_cache_bytes() {
  // The kernel's figure for the cache that this core shares; sysconf's is the whole processor's on some machines.
  std::size_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");
    std::size_t kilobytes = 0;
    if (file >> kilobytes) largest = std::max(largest, kilobytes << 10);
  }
  return largest;
}

WorkerPool::WorkerPool(unsigned n_threads) : n_threads_(n_threads) {
  for (unsigned thread = 1; thread < n_threads; ++thread) threads_.emplace_back([this, thread] { serve(thread); });
}

WorkerPool::~WorkerPool() {
  stopping_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void WorkerPool::run(const std::function<void(unsigned)>& work) {
  if (n_threads_ > 1) {
    work_ = &work;
    n_running_.store(n_threads_ - 1, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }
  work(0);
  for (std::uint32_t left; (left = n_running_.load(std::memory_order_acquire)) != 0;) wait_for_change(n_running_, left);
}

void WorkerPool::serve(unsigned thread) {
  std::uint32_t seen = 0;
  for (;;) {
    wait_for_change(generation_, seen);
    ++seen;
    if (stopping_) return;
    (*work_)(thread);
    if (n_running_.fetch_sub(1, std::memory_order_acq_rel) == 1) n_running_.notify_all();
  }
}

HugeBuffer::HugeBuffer(std::size_t bytes, WorkerPool& pool)
    : bytes_((std::max<std::size_t>(bytes, 1) + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes) {
  data_ = static_cast<std::uint8_t*>(std::aligned_alloc(kHugePageBytes, bytes_));
  if (data_ == nullptr) throw std::bad_alloc();
  madvise(data_, bytes_, MADV_HUGEPAGE);
  const std::size_t n_pages = bytes_ / kHugePageBytes;
  pool.run([&](unsigned thread) {
    const std::size_t first = n_pages * thread / pool.size(), end = n_pages * (thread + 1) / pool.size();
    std::memset(data_ + first * kHugePageBytes, 0, (end - first) * kHugePageBytes);
  });
}

HugeBuffer::~HugeBuffer() { std::free(data_); }

HugeBuffer::HugeBuffer(HugeBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

StreamTest::StreamTest(WorkerPool& pool) : buffer_(stream_bytes(), pool) {}

double StreamTest::run(WorkerPool& pool) {
  const std::size_t n_lines = buffer_.bytes() / sizeof(Line);
  const Line* const lines = buffer_.as<const Line>();
  std::atomic<std::uint64_t> sum{0};
  double best = 0;
  for (std::uint64_t (*pattern)(const Line*, std::size_t) : {read_lines<1>, read_lines<2>, read_lines<4>, read_lines_ahead}) {
    const double start = seconds_now();
    pool.run([&](unsigned thread) {
      const std::size_t first = n_lines * thread / pool.size(), end = n_lines * (thread + 1) / pool.size();
      sum += pattern(lines + first, end - first);
    });
    best = std::max(best, static_cast<double>(buffer_.bytes()) / (seconds_now() - start));
  }
  return best;
}

}  // namespace kvt::cli
