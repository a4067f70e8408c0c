// Our backend: the inner backend, with the graph changed before it runs.
#ifndef KVT_PLUGIN_WRAPPED_BACKEND_H
#define KVT_PLUGIN_WRAPPED_BACKEND_H

#include "ggml_abi/host_ggml.h"

namespace kvt::plugin {

// nullptr if the inner backend cannot be made.
ggml_backend_t wrapped_backend_create(ggml_backend_dev_t device, ggml_backend_dev_t inner_device, const char* params);

// What the registry offers by name for our backends: thread count and abort callback, passed to the inner backend.
void* wrapped_backend_proc_address(const char* name);

}  // namespace kvt::plugin

#endif
