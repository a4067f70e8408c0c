// Our devices. To the host each is a GPU, so that it gets the model's layers and with them the KV cache; all work is done by the
// inner device. Over the CPU there is one, and weights are declined, so they stay where the host puts them without us:
// memory-mapped or repacked. Over GPUs there is one for each, and weights lie in the inner device's genuine buffers.
#ifndef KVT_PLUGIN_WRAPPED_DEVICE_H
#define KVT_PLUGIN_WRAPPED_DEVICE_H

#include <string>
#include <vector>

#include "ggml_abi/host_ggml.h"

namespace kvt::plugin {

inline constexpr const char* kDeviceName = "KVTURBO0";  // the first one

struct InnerDevice {
  ggml_backend_dev_t device;
  int gpu;  // its number in its registry (gpu_support.h); -1: the CPU
};

// Makes the registry entry and the devices, once.
ggml_backend_reg_t wrapped_devices_make(const std::vector<InnerDevice>& inner);

// The device that ours wraps.
ggml_backend_dev_t inner_device(ggml_backend_dev_t device);
int gpu_of(ggml_backend_dev_t device);

}  // namespace kvt::plugin

#endif
