// Counters of the running plug-in: a line at the end of the process, and a file in Prometheus' text format (KVTURBO_METRICS),
// written anew at most once a second and at the end.
//
// Cost: two readings of the clock for each operation, by one thread; additions to counters for each graph.
#ifndef KVT_PLUGIN_METRICS_H
#define KVT_PLUGIN_METRICS_H

#include <atomic>
#include <chrono>
#include <cstdint>

#include "cache_tensor.h"
#include "plugin_options.h"

namespace kvt::plugin {

struct Counters {
  std::atomic<uint64_t> tokens{0};     // written to the first layer
  std::atomic<uint64_t> rows{0};       // of keys and of values, all layers
  std::atomic<uint64_t> graphs{0};     // that touch a compressed cache
  std::atomic<uint64_t> encode_ns{0};  // of one of the threads: the others do as much at the same time
  std::atomic<uint64_t> attend_ns{0};
  std::atomic<uint64_t> probe_warnings{0};  // keys that do not fit their codec (startup_report.h)
};
inline Counters g_counters;
inline Counters& counters() { return g_counters; }

// Adds the time of its scope, if this is the first of the threads that share an operation.
class OperationTimer {
 public:
  OperationTimer(std::atomic<uint64_t>& total, int part) : total_(part == 0 ? &total : nullptr) {
    if (total_ != nullptr) start_ = std::chrono::steady_clock::now();
  }
  ~OperationTimer() {
    if (total_ == nullptr) return;
    const auto time = std::chrono::steady_clock::now() - start_;
    total_->fetch_add(static_cast<uint64_t>(std::chrono::nanoseconds(time).count()), std::memory_order_relaxed);
  }
  OperationTimer(const OperationTimer&) = delete;
  OperationTimer& operator=(const OperationTimer&) = delete;

 private:
  std::atomic<uint64_t>* total_;
  std::chrono::steady_clock::time_point start_;
};

void metrics_configure(const PluginOptions& options);

// Rows that the graph about to run writes to a cache.
void metrics_count_rows(const CacheTensor& cache, int64_t n_rows);
// To be called when the layout of a cache is settled.
void metrics_layout_changed();
// To be called after each graph: writes the file if it is time to.
void metrics_graph_done();
void metrics_at_exit();

}  // namespace kvt::plugin

#endif
