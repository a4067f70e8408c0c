// What a build with GPU kernels adds to the plug-in (plugin/cuda). The rest of it knows GPUs only through this.
#ifndef KVT_PLUGIN_GPU_SUPPORT_H
#define KVT_PLUGIN_GPU_SUPPORT_H

#include <memory>
#include <string>

#include "graph_runner.h"
#include "kvturbo/kvturbo.h"

namespace kvt::plugin {

// Whether this build has kernels for GPUs. If not, nothing else here may be called.
bool has_gpu_support();

// The registry of the host's devices that they run on: "CUDA".
const char* gpu_registry_name();

// Why GPU number gpu of that registry cannot be used, in a clause with the remedy; "" if it can.
std::string gpu_problem(int gpu);

// Whether there are kernels for a codec.
bool is_gpu_codec(kvt_codec_id codec);

// To be called before the inner backend computes its first graph.
void gpu_prepare_process();

// nullptr if the GPU has no room for a stream.
std::unique_ptr<GraphRunner> make_gpu_runner(int gpu, ggml_backend_dev_t inner_device, ggml_backend_t inner);

}  // namespace kvt::plugin

#endif
