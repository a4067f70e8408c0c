#include "wrapped_backend.h"

#include <cstring>
#include <memory>

#include "cache_buffer.h"
#include "cache_buffer_type.h"
#include "cache_layout.h"
#include "ggml_abi/buffer_type_table.h"
#include "graph_plan.h"
#include "metrics.h"
#include "no_throw.h"
#include "plugin_messages.h"
#include "startup_report.h"

namespace kvt::plugin {
namespace {

// A function that the inner device's registry offers by name; nullptr if it does not.
template <typename Function>
Function inner_proc(ggml_backend_dev_t inner_device, const char* name) {
  ggml_backend_reg_t reg = inner_device->reg;
  if (reg == nullptr || reg->iface.get_proc_address == nullptr) return nullptr;
  return reinterpret_cast<Function>(reg->iface.get_proc_address(reg, name));
}

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

struct WrappedBackend {
  ggml_backend_dev_t inner_device;
  ggml_backend_t inner;
  InnerThreadPool thread_pool;
  GraphPlan plan;
  int n_threads = GGML_DEFAULT_N_THREADS;

  WrappedBackend(ggml_backend_dev_t d, ggml_backend_t b) : inner_device(d), inner(b), thread_pool(d, b), plan(d) {}
};

WrappedBackend* self(ggml_backend_t backend) { return static_cast<WrappedBackend*>(backend->context); }

// ---- ggml_backend_i

const char* get_name(ggml_backend_t backend) { return backend->device->iface.get_name(backend->device); }

void free_backend(ggml_backend_t backend) {
  ggml_backend_t inner = self(backend)->inner;
  delete self(backend);  // before the inner backend, which its thread pool is taken from
  host().ggml_backend_free(inner);
  delete backend;
}

void synchronize(ggml_backend_t backend) { host().ggml_backend_synchronize(self(backend)->inner); }

// The scheduler shows every graph here when it plans memory, before anything runs.
void graph_optimize(ggml_backend_t backend, ggml_cgraph* graph, ggml_backend_graph_optimize_params* params) {
  completes([&] { learn_from_attention(graph); });  // or when it runs
  inner_graph_optimize(self(backend)->inner, graph, params);
}

enum ggml_status compute(ggml_backend_t backend, ggml_cgraph* graph) {
  WrappedBackend* s = self(backend);
  if (!s->plan.is_reusable(graph, s->n_threads)) {
    if (!settle_all(graph)) {
      say("no memory for the KV cache; use a smaller context (-c)");
      return GGML_STATUS_ALLOC_FAILED;
    }
    report_layout();
  }
  s->thread_pool.require(s->n_threads);
  ggml_cgraph* planned = s->plan.prepare(graph, s->n_threads);
  if (planned == nullptr) {
    say("no memory for working space");
    return GGML_STATUS_ALLOC_FAILED;
  }
  const enum ggml_status status = s->inner->iface.graph_compute(s->inner, planned);
  completes([] { metrics_graph_done(); });  // the step is done, whether it is counted or not
  if (status == GGML_STATUS_SUCCESS && s->plan.has_run_out_of_memory()) {
    say("no memory for working space");
    return GGML_STATUS_ALLOC_FAILED;
  }
  if (status == GGML_STATUS_SUCCESS && s->plan.has_failed()) {
    say("an operation on the KV cache failed: a row outside of the cache, or more threads than announced; please report this");
    return GGML_STATUS_FAILED;
  }
  return status;
}

enum ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph* graph) {
  enum ggml_status status = GGML_STATUS_ALLOC_FAILED;
  if (!completes([&] { status = compute(backend, graph); })) say("no memory for working space");
  self(backend)->plan.end_step(status == GGML_STATUS_SUCCESS);
  return status;
}

// The cache is ours to read; everything else goes to the inner backend's asynchronous copies if it has them.

void set_tensor_async(ggml_backend_t backend, ggml_tensor* tensor, const void* data, size_t offset, size_t size) {
  if (cache_tensor_of(tensor) == nullptr) {
    self(backend)->inner->iface.set_tensor_async(self(backend)->inner, tensor, data, offset, size);
  } else {
    synchronize(backend);
    host().ggml_backend_tensor_set(tensor, data, offset, size);
  }
}

void get_tensor_async(ggml_backend_t backend, const ggml_tensor* tensor, void* data, size_t offset, size_t size) {
  if (cache_tensor_of(tensor) == nullptr) {
    self(backend)->inner->iface.get_tensor_async(self(backend)->inner, tensor, data, offset, size);
  } else {
    synchronize(backend);
    host().ggml_backend_tensor_get(tensor, data, offset, size);
  }
}

ggml_guid_t guid() {
  static ggml_guid id = {'k', 'v', 't', 'u', 'r', 'b', 'o', 0, 0x9f, 0x31, 0x5c, 0xe2, 0x47, 0x8a, 0x60, 0xd4};
  return &id;
}

ggml_backend_t inner_of(ggml_backend_t backend) {
  return std::memcmp(backend->guid, guid(), sizeof(ggml_guid)) == 0 ? self(backend)->inner : backend;
}

bool cpy_tensor_async(ggml_backend_t src_backend, ggml_backend_t dst_backend, const ggml_tensor* src, ggml_tensor* dst) {
  if (cache_tensor_of(src) != nullptr || cache_tensor_of(dst) != nullptr) return false;
  ggml_backend_t inner = inner_of(dst_backend);
  return inner->iface.cpy_tensor_async != nullptr && inner->iface.cpy_tensor_async(inner_of(src_backend), inner, src, dst);
}

void event_record(ggml_backend_t backend, ggml_backend_event_t event) {
  self(backend)->inner->iface.event_record(self(backend)->inner, event);
}
void event_wait(ggml_backend_t backend, ggml_backend_event_t event) {
  self(backend)->inner->iface.event_wait(self(backend)->inner, event);
}

// ---- offered by name

void set_n_threads(ggml_backend_t backend, int n_threads) {
  WrappedBackend* s = self(backend);
  s->n_threads = n_threads;
  const auto set = inner_proc<ggml_backend_set_n_threads_t>(s->inner_device, "ggml_backend_set_n_threads");
  if (set != nullptr) set(s->inner, n_threads);
}

void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void* user_data) {
  WrappedBackend* s = self(backend);
  const auto set = inner_proc<ggml_backend_set_abort_callback_t>(s->inner_device, "ggml_backend_set_abort_callback");
  if (set != nullptr) set(s->inner, callback, user_data);
}

}  // namespace

ggml_backend_t wrapped_backend_create(ggml_backend_dev_t device, ggml_backend_dev_t inner_device, const char* params) {
  ggml_backend_t inner = host().ggml_backend_dev_init(inner_device, params);
  if (inner == nullptr) return nullptr;
  ggml_backend_i table{};
  table.get_name = get_name;
  table.free = free_backend;
  table.synchronize = synchronize;
  table.graph_compute = graph_compute;
  table.graph_optimize = graph_optimize;  // a host of API 2 passes one argument less, which we do not read then
  if (inner->iface.set_tensor_async != nullptr) table.set_tensor_async = set_tensor_async;
  if (inner->iface.get_tensor_async != nullptr) table.get_tensor_async = get_tensor_async;
  if (inner->iface.cpy_tensor_async != nullptr) table.cpy_tensor_async = cpy_tensor_async;
  if (inner->iface.event_record != nullptr) table.event_record = event_record;
  if (inner->iface.event_wait != nullptr) table.event_wait = event_wait;
  ggml_backend_t backend = nullptr;
  if (!completes([&] {
        auto context = std::make_unique<WrappedBackend>(inner_device, inner);
        backend = new ggml_backend{guid(), table, device, context.get()};
        context.release();
      })) {
    host().ggml_backend_free(inner);
  }
  return backend;
}

void* wrapped_backend_proc_address(const char* name) {
  if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) return reinterpret_cast<void*>(set_n_threads);
  if (std::strcmp(name, "ggml_backend_set_abort_callback") == 0) return reinterpret_cast<void*>(set_abort_callback);
  return nullptr;
}

}  // namespace kvt::plugin
