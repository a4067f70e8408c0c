#include "buffer_type_table.h"

namespace kvt::plugin {

void BufferTypeObject::init(const ggml_backend_buffer_type_i& table, ggml_backend_dev_t device) {
  if (host().api_version >= 3) {
    object_.api3 = {table, device, nullptr};
  } else {
    object_.api2 = {table.get_name,
                    table.alloc_buffer,
                    table.get_alignment,
                    table.get_max_size,
                    table.get_alloc_size,
                    table.is_host,
                    device,
                    nullptr};
  }
}

ggml_backend_dev_t buffer_type_device(ggml_backend_buffer_type_t buft) {
  return host().api_version >= 3 ? buft->device : reinterpret_cast<const BufferTypeApi2*>(buft)->device;
}

void inner_graph_optimize(ggml_backend_t backend, ggml_cgraph* graph, ggml_backend_graph_optimize_params* params) {
  if (backend->iface.graph_optimize == nullptr) return;
  if (host().api_version >= 3) {
    backend->iface.graph_optimize(backend, graph, params);
  } else {
    auto* optimize = reinterpret_cast<void*>(backend->iface.graph_optimize);
    reinterpret_cast<void (*)(ggml_backend_t, ggml_cgraph*)>(optimize)(backend, graph);
  }
}

}  // namespace kvt::plugin
