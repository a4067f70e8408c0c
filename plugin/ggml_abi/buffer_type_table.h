// A buffer type in the shape that the host's backend API has. API 3 put alloc_buffer_n and get_alloc_size_n between the members
// of API 2, so one of two tables lies in the object.
#ifndef KVT_PLUGIN_BUFFER_TYPE_TABLE_H
#define KVT_PLUGIN_BUFFER_TYPE_TABLE_H

#include "host_ggml.h"

namespace kvt::plugin {

// ggml_backend_buffer_type of backend API 2.
struct BufferTypeApi2 {
  const char* (*get_name)(ggml_backend_buffer_type_t);
  ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t);
  size_t (*get_alignment)(ggml_backend_buffer_type_t);
  size_t (*get_max_size)(ggml_backend_buffer_type_t);
  size_t (*get_alloc_size)(ggml_backend_buffer_type_t, const ggml_tensor*);
  bool (*is_host)(ggml_backend_buffer_type_t);
  ggml_backend_dev_t device;
  void* context;
};

// Storage for a buffer type of either API.
class BufferTypeObject {
 public:
  // Takes the members that the host's API has from an API 3 table.
  void init(const ggml_backend_buffer_type_i& table, ggml_backend_dev_t device);

  ggml_backend_buffer_type_t get() { return &object_.api3; }
  bool is(ggml_backend_buffer_type_t buft) const { return buft == &object_.api3; }

 private:
  union {
    ggml_backend_buffer_type api3;
    BufferTypeApi2 api2;
  } object_{};
};

// The device of a buffer type of either API.
ggml_backend_dev_t buffer_type_device(ggml_backend_buffer_type_t buft);

// Calls the inner graph_optimize, which has a third argument since API 3. Does nothing if the backend has none.
void inner_graph_optimize(ggml_backend_t backend, ggml_cgraph* graph, ggml_backend_graph_optimize_params* params);

}  // namespace kvt::plugin

#endif
