// Our device's buffer type: a cache buffer for the tensors of a KV cache, the inner device's genuine buffer for everything else
// (compute buffers, and what a test may put there).
#ifndef KVT_PLUGIN_CACHE_BUFFER_TYPE_H
#define KVT_PLUGIN_CACHE_BUFFER_TYPE_H

#include "ggml_abi/buffer_type_table.h"

namespace kvt::plugin {

// device: ours; its inner device is asked for genuine buffers.
void cache_buffer_type_init(BufferTypeObject* buffer_type, ggml_backend_dev_t device);

// A cache tensor by its name: f16, and named as llama.cpp names the tensors of its cache.
bool is_cache_tensor(const ggml_tensor* t);

// Whether a cache buffer was ever made in this process.
bool was_cache_allocated();

}  // namespace kvt::plugin

#endif
