// The means that were subtracted from keys (docs/algorithm.md 6), as the kernels read them: int8 codes with a unit for each run of cells
// of a stream and head.
#ifndef KVT_CUDA_KEY_MEANS_H
#define KVT_CUDA_KEY_MEANS_H

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace kvt::cuda {

struct KeyMeans {
  const int8_t* codes;  // null: there are none
  size_t head_stride, stream_stride;
  const float* units;
  size_t unit_head_stride, unit_stream_stride;
  uint32_t cells;  // of a run

  __host__ __device__ int run_of(int cell) const { return static_cast<int>(static_cast<uint32_t>(cell) / cells); }
  // In bytes from `codes` and `units` on.
  __host__ __device__ size_t code_offset(uint32_t stream, uint32_t head, int run, int dim) const {
    return stream * stream_stride + head * head_stride + static_cast<size_t>(run) * dim;
  }
  __host__ __device__ size_t unit_offset(uint32_t stream, uint32_t head, int run) const {
    return stream * unit_stream_stride + head * unit_head_stride + static_cast<size_t>(run) * sizeof(float);
  }
  __host__ __device__ const int8_t* codes_of(uint32_t stream, uint32_t head, int run, int dim) const {
    return codes + code_offset(stream, head, run, dim);
  }
  // 0 for a run without a mean.
  __host__ __device__ float unit_of(uint32_t stream, uint32_t head, int run) const {
    const float unit = *reinterpret_cast<const float*>(reinterpret_cast<const char*>(units) + unit_offset(stream, head, run));
    return unit < 0 ? 0.0f : unit;
  }
};

// Of any arguments that have them.
template <class Args>
KeyMeans make_key_means(const Args& a) {
  return {a.key_mean,
          a.key_mean_head_stride,
          a.key_mean_stream_stride,
          a.key_mean_unit,
          a.key_mean_unit_head_stride,
          a.key_mean_unit_stream_stride,
          a.mean_cells};
}

}  // namespace kvt::cuda

#endif
