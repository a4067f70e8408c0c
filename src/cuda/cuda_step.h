// What the API hands to the kernels of steps and of decoding. Plain data: it travels as a kernel parameter.
#ifndef KVT_CUDA_CUDA_STEP_H
#define KVT_CUDA_CUDA_STEP_H

#include "cuda/cuda_encode.h"
#include "cuda/step_layout.h"

namespace kvt::cuda {

// Launches; the caller asks cudaGetLastError.
void launch_prepare_step(const kvt_cuda_step_args& args, void* step, cudaStream_t stream);

inline StepShape step_shape(const kvt_cuda_step_args& a) { return {a.n_streams, a.n_queries, a.n_cells, a.n_first + a.window}; }

// What decoding needs to know of a side's format.
struct CodeTables {
  uint32_t norm_offset, residual_offset, code_bits;
  float value[32];        // step * level, by level index; 8-bit keys: value[0] is the step
  uint16_t signs[2][16];  // as in EncodeTables
};
CodeTables make_code_tables(const SideLayout& layout);

struct DecodeCall {
  kvt_cuda_decode_args args;
  kvt_cuda_exact_rows exact;  // a copy; none: n_first and capacity are 0
  KeyMeans means;
  CodeTables tables;
};
void launch_decode(const SideLayout& layout, const kvt_cuda_decode_args& args, cudaStream_t stream);

// source: what the arguments make for encoding.
void launch_begin_means(const SideLayout& layout, const EncodeCall& source, const float* key_scale, const kvt_cuda_encode_args& keys,
                        cudaStream_t stream, bool overlap);

}  // namespace kvt::cuda

#endif
