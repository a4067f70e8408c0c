#include "wrapped_backend.h"

#include <cstring>
#include <memory>
#include <utility>

#include "cache_buffer.h"
#include "cache_layout.h"
#include "ggml_abi/buffer_type_table.h"
#include "gpu_support.h"
#include "graph_runner.h"
#include "no_throw.h"
#include "wrapped_device.h"

namespace kvt::plugin {
namespace {

struct WrappedBackend {
  ggml_backend_dev_t inner_device;
  ggml_backend_t inner;
  std::unique_ptr<GraphRunner> runner;
};

WrappedBackend* self(ggml_backend_t backend) { return static_cast<WrappedBackend*>(backend->context); }

// ---- ggml_backend_i

const char* get_name(ggml_backend_t backend) { return backend->device->iface.get_name(backend->device); }

void free_backend(ggml_backend_t backend) {
  ggml_backend_t inner = self(backend)->inner;
  delete self(backend);  // before the inner backend, which the runner works with
  host().ggml_backend_free(inner);
  delete backend;
}

void synchronize(ggml_backend_t backend) { host().ggml_backend_synchronize(self(backend)->inner); }

// The scheduler shows every graph here when it plans memory, before anything runs.
void graph_optimize(ggml_backend_t backend, ggml_cgraph* graph, ggml_backend_graph_optimize_params* params) {
  completes([&] { learn_from_attention(graph); });  // or when it runs
  inner_graph_optimize(self(backend)->inner, graph, params);
}

enum ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph* graph) {
  GraphRunner* runner = self(backend)->runner.get();
  enum ggml_status status = GGML_STATUS_ALLOC_FAILED;
  if (!completes([&] { status = runner->compute(graph); })) status = no_memory_for_working_space();
  runner->end_step(status == GGML_STATUS_SUCCESS);
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
  s->runner->set_n_threads(n_threads);
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
  const int gpu = gpu_of(device);
  if (gpu >= 0) gpu_prepare_process();
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
  completes([&] {
    std::unique_ptr<GraphRunner> runner = gpu >= 0 ? make_gpu_runner(gpu, inner_device, inner) : make_cpu_runner(inner_device, inner);
    if (runner == nullptr) return;
    auto context = std::make_unique<WrappedBackend>(WrappedBackend{inner_device, inner, std::move(runner)});
    backend = new ggml_backend{guid(), table, device, context.get()};
    context.release();
  });
  if (backend == nullptr) host().ggml_backend_free(inner);
  return backend;
}

void* wrapped_backend_proc_address(const char* name) {
  if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) return reinterpret_cast<void*>(set_n_threads);
  if (std::strcmp(name, "ggml_backend_set_abort_callback") == 0) return reinterpret_cast<void*>(set_abort_callback);
  return nullptr;
}

}  // namespace kvt::plugin
