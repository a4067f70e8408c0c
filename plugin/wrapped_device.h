// Our device. To the host it is a GPU, so that it gets the model's layers and with them the KV cache; all work is done by the
// inner device. Weights are declined, so they stay where the host puts them without us: memory-mapped or repacked.
#ifndef KVT_PLUGIN_WRAPPED_DEVICE_H
#define KVT_PLUGIN_WRAPPED_DEVICE_H

#include "ggml_abi/host_ggml.h"

namespace kvt::plugin {

inline constexpr const char* kDeviceName = "KVTURBO0";

// Makes the registry entry and the one device, once.
ggml_backend_reg_t wrapped_device_register(ggml_backend_dev_t inner);

// The device that ours wraps.
ggml_backend_dev_t inner_device(ggml_backend_dev_t device);

}  // namespace kvt::plugin

#endif
