// The kernels behind GpuStream::stage and add_one.
#ifndef KVT_PLUGIN_STAGE_PIECES_H
#define KVT_PLUGIN_STAGE_PIECES_H

#include <cuda_runtime.h>

#include "gpu_stream.h"

namespace kvt::plugin {

// The caller asks cudaGetLastError.
void launch_stage(const StagedPieces& pieces, cudaStream_t stream);
void launch_add_one(uint32_t* number, cudaStream_t stream);

}  // namespace kvt::plugin

#endif
