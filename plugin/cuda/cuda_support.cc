// gpu_support.h for NVIDIA GPUs.
#include <cstdlib>

#include "gpu_stream.h"
#include "gpu_support.h"

namespace kvt::plugin {

bool has_gpu_support() { return true; }

bool is_gpu_codec(kvt_codec_id codec) {
  return codec == KVT_CODEC_F16 || codec == KVT_CODEC_HYBRID || codec == KVT_CODEC_SCALAR43 || codec == KVT_CODEC_K4V3;
}

// The inner backend would capture each run of nodes by itself; we capture whole steps, and captures do not nest. It reads this once.
void gpu_prepare_process() { setenv("GGML_CUDA_DISABLE_GRAPHS", "1", 1); }

}  // namespace kvt::plugin
