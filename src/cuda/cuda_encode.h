// What the API hands to the encoders. Plain data: it travels as a kernel parameter.
#ifndef KVT_CUDA_CUDA_ENCODE_H
#define KVT_CUDA_CUDA_ENCODE_H

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/cuda_key_means.h"
#include "format/page_layout.h"
#include "kvturbo/kvturbo_cuda.h"

namespace kvt::cuda {

struct EncodeTables {
  // Thresholds as a complete binary tree: node i has the children 2i and 2i + 1 (above). Scalar: nodes 1 .. 2^bits - 1.
  // Trellis: one tree for each subset z, from tree[8 * z].
  float tree[32];
  float value[32];        // step * level, by code or by level index; 8-bit keys: value[0] is the step
  float scales[3];        // that a trellis encoder tries
  uint32_t n_scales;      // 0: y as it is
  uint32_t code_bits;     // as stored: 2, 3, 4 or 8
  uint16_t signs[2][16];  // bit i of entry l: coordinate 16 i + l is negated (rotation, sketch)
};

struct EncodeCall {
  const char *src, *unchanged;
  size_t src_row_stride, src_head_stride;
  const void* cells;
  int64_t cell_offset, cells_per_stream;
  char* pages;
  size_t page_stride, head_stride, stream_stride;
  const float* key_inverse_scale;  // null: no conditioning
  size_t key_scale_head_stride;
  KeyMeans means;
  uint32_t* n_refused;
  uint32_t n_rows, n_kv_heads, head_dim;
  kvt_cuda_type src_type;
  kvt_cuda_index_type cells_type;
  bool round_to_half, exact_in_place;
  kvt_cuda_exact_rows exact;  // a copy; none: n_streams is 0
  uint32_t norm_offset, residual_offset;
  bool raw_norm;  // hybrid; else matched (keys) or least squares (values)
  EncodeTables tables;
};

// Keys and values of one layer, or one of the two, in one launch.
struct EncodePair {
  EncodeCall side[2];  // by kvt_side
  uint32_t first_side, n_sides;
  uint32_t block_rows;  // rows of a block, kBlockRows or fewer

  const EncodeCall& any() const { return side[first_side]; }
};

EncodeCall make_encode_call(const SideLayout& layout);  // all that does not come from the arguments
// Whether there is a kernel for both sides at once.
inline bool is_encode_pair(uint32_t head_dim_k, uint32_t head_dim_v) {
  return head_dim_k == head_dim_v || (head_dim_k == 192 && head_dim_v == 128);
}
// Launches; the caller asks cudaGetLastError. overlap: can_overlap().
void launch_encode_halves(const EncodeCall& call, cudaStream_t stream);
void launch_encode_hybrid(EncodePair& pair, cudaStream_t stream, bool overlap);
void launch_encode_scalar43(EncodePair& pair, cudaStream_t stream, bool overlap);  // and 8-bit keys
// Trellis codes of any width.
void launch_encode_trellis(EncodePair& pair, cudaStream_t stream, bool overlap);

}  // namespace kvt::cuda

#endif
