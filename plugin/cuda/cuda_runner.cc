// Runs plans on a GPU. Two streams take turns, the inner backend's and ours, each waiting for the other by events that the inner
// backend records and waits for itself: nothing of its insides is known here.
//
// A plan that comes again is captured: inner kernels and ours become one CUDA graph, which one call launches from then on.
#include <mutex>

#include "cache_layout.h"
#include "cuda_plan.h"
#include "gpu_support.h"
#include "metrics.h"
#include "no_throw.h"
#include "plugin_messages.h"
#include "startup_report.h"
#include "state_rows.h"

namespace kvt::plugin {
namespace {

class CudaRunner : public GraphRunner {
 public:
  CudaRunner(ggml_backend_dev_t inner_device, ggml_backend_t inner, std::unique_ptr<GpuStream> stream)
      : inner_(inner), stream_(std::move(stream)), plan_(inner_device, stream_.get()) {
    // Without events the inner backend has computed when it returns.
    if (inner->iface.event_record == nullptr) return;
    inner_done_ = host().ggml_backend_event_new(inner_device);
    ours_done_ = host().ggml_backend_event_new(inner_device);
  }
  ~CudaRunner() override {
    finish();
    for (ggml_backend_event_t event : {inner_done_, ours_done_}) {
      if (event != nullptr) host().ggml_backend_event_free(event);
    }
  }

  enum ggml_status compute(ggml_cgraph* graph) override {
    if (graph->n_nodes == 0) return GGML_STATUS_SUCCESS;
    state_settle_caches_of(graph);  // calls finish, if rows were restored
    const std::lock_guard<std::mutex> lock(mutex_);
    stream_->make_current();
    finish_locked();
    if (!plan_.is_reusable(graph)) {
      if (!settle_all(graph)) return no_memory_for_cache();
      report_layout();
      n_runs_ = 0;
      if (!plan_.build(graph, [this] { wait(); })) return no_memory_for_working_space();
    }
    if (!plan_.is_changed()) return inner_->iface.graph_compute(inner_, graph);
    const bool has_host_work = plan_.begin();
    ++counters().graphs;
    const enum ggml_status status = run(graph, has_host_work);
    plan_.end();
    completes([] { metrics_graph_done(); });  // the step is done, whether it is counted or not
    return status;
  }

  void set_n_threads(int) override {}

  void finish() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    stream_->make_current();
    wait();
    finish_locked();
  }

 private:
  // Our work always ends with the inner stream waiting for it.
  void wait() { host().ggml_backend_synchronize(inner_); }

  void finish_locked() {
    if (!plan_.has_rest()) return;
    wait();
    std::string error = "no memory for working space";
    bool is_done = false;
    completes([&] { is_done = plan_.do_rest(&error); });
    if (!is_done) failed(error);
  }

  enum ggml_status run(ggml_cgraph* graph, bool has_host_work) {
    const bool can_capture = plan_.is_capturable() && !has_host_work && !is_capture_off_ && ours_done_ != nullptr;
    if (!can_capture) return run_steps(graph);
    // Once without a capture: kernels are loaded and the inner backend's memory pools grow at their first launch.
    if (n_runs_++ == 0) return run_steps(graph);
    if (n_runs_ == 2 && !capture(graph)) {
      is_capture_off_ = true;
      n_runs_ = 0;
      say_once("steps cannot be captured as CUDA graphs (" + error_ + "): right, but slower");
      return run_steps(graph);
    }
    if (!join_inner() || !stream_->launch_graph() || !join_ours()) return failed(stream_->last_error());
    return GGML_STATUS_SUCCESS;
  }

  bool capture(ggml_cgraph* graph) {
    if (!stream_->begin_capture()) {
      error_ = stream_->last_error();
      return false;
    }
    // The inner stream is in the capture as soon as it waits for an event of ours.
    const bool is_done = join_ours() && all_steps(graph) == GGML_STATUS_SUCCESS && join_inner();
    const bool is_captured = stream_->end_capture();
    if (is_done && is_captured) return true;
    if (is_done || error_.empty()) error_ = stream_->last_error();
    stream_->drop_graph();
    return false;
  }

  // Our stream goes on when the inner one has come here, and the reverse.
  bool join_inner() {
    if (inner_done_ == nullptr) return true;
    inner_->iface.event_record(inner_, inner_done_);
    return stream_->wait(inner_done_->context);
  }
  bool join_ours() {
    if (ours_done_ == nullptr) return true;
    if (!stream_->record(ours_done_->context)) return false;
    inner_->iface.event_wait(inner_, ours_done_);
    return true;
  }

  enum ggml_status run_steps(ggml_cgraph* graph) {
    error_.clear();
    const enum ggml_status status = all_steps(graph);
    if (status == GGML_STATUS_SUCCESS) return status;
    return error_.empty() ? status : failed(error_);
  }

  // Begins and ends with the inner stream.
  enum ggml_status all_steps(ggml_cgraph* graph) {
    bool is_ours = false;  // whose turn it is
    for (const PlanStep& step : plan_.steps()) {
      if (step.kind == PlanStep::Kind::kNodes ? !step.has_work : step.is_due != nullptr && !*step.is_due) continue;
      const bool will_be_ours = step.kind != PlanStep::Kind::kNodes;
      if (will_be_ours != is_ours && !(will_be_ours ? join_inner() : join_ours())) return stream_failed();
      is_ours = will_be_ours;
      if (step.kind == PlanStep::Kind::kNodes) {
        const enum ggml_status status = compute_nodes(graph, step);
        if (status != GGML_STATUS_SUCCESS) return status;
        continue;
      }
      if (step.kind == PlanStep::Kind::kHost && !stream_->synchronize()) return stream_failed();
      if (!step.run(&error_)) return GGML_STATUS_FAILED;
    }
    return !is_ours || join_ours() ? GGML_STATUS_SUCCESS : stream_failed();
  }

  // A copy of the host's structure keeps its table of uses, by which the inner backend knows what it may fuse.
  enum ggml_status compute_nodes(ggml_cgraph* graph, const PlanStep& step) {
    ggml_cgraph part = *graph;
    part.size = 0;
    part.n_leafs = 0;
    part.leafs = nullptr;
    part.grads = nullptr;
    part.grad_accs = nullptr;
    part.nodes = plan_.nodes().data() + step.begin;
    part.n_nodes = static_cast<int>(step.end - step.begin);
    part.uid = 0;
    return inner_->iface.graph_compute(inner_, &part);
  }

  enum ggml_status stream_failed() {
    error_ = stream_->last_error();
    return GGML_STATUS_FAILED;
  }

  enum ggml_status failed(const std::string& why) {
    say("an operation on the KV cache failed: " + why);
    return GGML_STATUS_FAILED;
  }

  ggml_backend_t inner_;
  std::unique_ptr<GpuStream> stream_;
  CudaPlan plan_;
  ggml_backend_event_t inner_done_ = nullptr, ours_done_ = nullptr;
  std::mutex mutex_;
  std::string error_;
  int n_runs_ = 0;  // of the present plan
  bool is_capture_off_ = false;
};

}  // namespace

std::unique_ptr<GraphRunner> make_gpu_runner(int gpu, ggml_backend_dev_t inner_device, ggml_backend_t inner) {
  std::unique_ptr<GpuStream> stream = GpuStream::create(gpu);
  if (stream == nullptr) {
    say("the GPU has no memory for another stream; free some, or use KVTURBO_DEVICE=cpu");
    return nullptr;
  }
  return std::make_unique<CudaRunner>(inner_device, inner, std::move(stream));
}

}  // namespace kvt::plugin
