#include <cstring>

#include "cache_layout.h"
#include "graph_plan.h"
#include "graph_runner.h"
#include "metrics.h"
#include "no_throw.h"
#include "plugin_messages.h"
#include "startup_report.h"

namespace kvt::plugin {
namespace {

// Threads for a CPU backend built without OpenMP. Such a backend makes and joins a pool for each graph unless it is given one,
// and the host gives its pool only to the CPU backend that it made itself.
class InnerThreadPool {
 public:
  InnerThreadPool(ggml_backend_dev_t inner_device, ggml_backend_t inner) : inner_(inner) {
    const auto features = inner_proc<ggml_backend_get_features_t>(inner_device, "ggml_backend_get_features");
    bool has_openmp = features == nullptr;  // unknown: leave it alone
    for (auto* f = features != nullptr ? features(inner_device->reg) : nullptr; f != nullptr && f->name != nullptr; ++f) {
      has_openmp = has_openmp || std::strcmp(f->name, "OPENMP") == 0;
    }
    if (has_openmp) return;
    new_ = inner_proc<decltype(&::ggml_threadpool_new)>(inner_device, "ggml_threadpool_new");
    free_ = inner_proc<decltype(&::ggml_threadpool_free)>(inner_device, "ggml_threadpool_free");
    set_ = inner_proc<decltype(&::ggml_backend_cpu_set_threadpool)>(inner_device, "ggml_backend_cpu_set_threadpool");
  }
  ~InnerThreadPool() { reset(nullptr); }
  InnerThreadPool(const InnerThreadPool&) = delete;
  InnerThreadPool& operator=(const InnerThreadPool&) = delete;

  // Makes sure that the pool has at least n_threads.
  void require(int n_threads) {
    if (new_ == nullptr || free_ == nullptr || set_ == nullptr || n_threads <= n_pool_threads_) return;
    ggml_threadpool_params params = host().ggml_threadpool_params_default(n_threads);
    params.poll = 0;  // sleep between graphs, as a pool of the host may be polling on the same cores
    n_pool_threads_ = n_threads;
    reset(new_(&params));
  }

 private:
  void reset(ggml_threadpool_t pool) {
    if (pool_ == nullptr && pool == nullptr) return;
    set_(inner_, pool);
    if (pool_ != nullptr) free_(pool_);
    pool_ = pool;
  }

  ggml_backend_t inner_;
  decltype(&::ggml_threadpool_new) new_ = nullptr;
  decltype(&::ggml_threadpool_free) free_ = nullptr;
  decltype(&::ggml_backend_cpu_set_threadpool) set_ = nullptr;
  ggml_threadpool_t pool_ = nullptr;
  int n_pool_threads_ = 0;
};

class CpuRunner : public GraphRunner {
 public:
  CpuRunner(ggml_backend_dev_t inner_device, ggml_backend_t inner)
      : inner_(inner), thread_pool_(inner_device, inner), plan_(inner_device) {}

  enum ggml_status compute(ggml_cgraph* graph) override {
    if (!plan_.is_reusable(graph, n_threads_)) {
      if (!settle_all(graph)) return no_memory_for_cache();
      report_layout();
    }
    thread_pool_.require(n_threads_);
    ggml_cgraph* planned = plan_.prepare(graph, n_threads_);
    if (planned == nullptr) return no_memory_for_working_space();
    const enum ggml_status status = inner_->iface.graph_compute(inner_, planned);
    completes([] { metrics_graph_done(); });  // the step is done, whether it is counted or not
    if (status == GGML_STATUS_SUCCESS && plan_.has_run_out_of_memory()) return no_memory_for_working_space();
    if (status == GGML_STATUS_SUCCESS && plan_.has_failed()) {
      say("an operation on the KV cache failed: a row outside of the cache, or more threads than announced; please report this");
      return GGML_STATUS_FAILED;
    }
    return status;
  }

  void end_step(bool is_done) noexcept override { plan_.end_step(is_done); }
  void set_n_threads(int n_threads) override { n_threads_ = n_threads; }
  void finish() override {}  // the CPU backend computes before it returns

 private:
  ggml_backend_t inner_;
  InnerThreadPool thread_pool_;
  GraphPlan plan_;
  int n_threads_ = GGML_DEFAULT_N_THREADS;
};

}  // namespace

std::unique_ptr<GraphRunner> make_cpu_runner(ggml_backend_dev_t inner_device, ggml_backend_t inner) {
  return std::make_unique<CpuRunner>(inner_device, inner);
}

}  // namespace kvt::plugin
