// What the API hands to the attention kernels. Plain data: it travels as a kernel parameter.
#ifndef KVT_CUDA_CUDA_ATTEND_H
#define KVT_CUDA_CUDA_ATTEND_H

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/cuda_key_means.h"
#include "cuda/step_layout.h"
#include "format/page_layout.h"
#include "kvturbo/kvturbo_cuda.h"

namespace kvt::cuda {

struct AttendCall {
  kvt_cuda_attention args;
  kvt_cuda_exact_rows exact_k, exact_v;  // copies; none: n_first and capacity are 0
  uint32_t n_rows;       // query rows of one kv head: row = query * n_group + head in group
  uint32_t n_blocks;     // blocks that share the pages
  uint32_t n_row_warps;  // warps of a block that read one page, each for its own rows (or, f16 256, its part of the value)

  // A prepared step, or null.
  const char* step;
  StepShape step_shape;

  // Partial results, one for each (block, unit) pair that meets; unit = stream * n_kv_heads + head; slot = block + unit.
  float* partial_acc;  // [n_slots, n_rows, head_dim_v], sums of weight * value, rotated and in units of value_factor for code
                       // pages
  float* partial_max;  // [n_slots, n_rows], base-2 logarithm that the weights are relative to
  float* partial_sum;  // [n_slots, n_rows]

  // Code pages.
  float score_factor;                     // base-2 score = score_factor * unit * norm * <q8, level>
  float sketch_factor;                    // and sketch_factor * sketch unit * residual * <q8', 64 s>
  KeyMeans means;
  int mean_pages;                         // of a run
  float mean_factor;                      // base-2 score of a mean = mean_factor * unit * <q, codes>
  float value_factor;                     // step / head_dim_v
  uint32_t key_bytes[6], value_bytes[6];  // level tables as byte-permute operands, code_bytes.cuh
  uint32_t signs[2][8];                   // bit i: coordinate i is negated (rotation, sketch)
};

constexpr unsigned kMaxPageWarps = 12;

struct DeviceLimits {
  int n_multiprocessors;
  int shared_bytes;  // that a block can have
};

// How a call is cut; depends on shapes and the device only.
struct AttendPlan {
  uint32_t n_blocks, n_row_grid;  // the grid; blocks of one row of it share the pages, and each row has its own query rows
  uint32_t n_page_warps, n_row_warps, shared_bytes;
};

struct AttendKernels {
  AttendPlan (*plan)(const kvt_cuda_attention& args, const DeviceLimits& device);
  // The caller asks cudaGetLastError.
  void (*launch)(const AttendCall& call, const AttendPlan& plan, cudaStream_t stream, bool overlap);
};
extern const AttendKernels kAttendHybrid, kAttendScalar43, kAttendK4v3, kAttendK3v3, kAttendK3v2, kAttendK2v2, kAttendK8v4, kAttendK8v3,
    kAttendHalves;
void launch_merge(const AttendCall& call, cudaStream_t stream, bool overlap);
// Whether the kernels that the current device would run wait for their predecessors by themselves: code for compute
// capability 9.0. Code for 8.0 does not, even where it runs on a newer device.
bool can_overlap();

AttendCall make_attend_call(const SideLayout& key, const SideLayout& value, const kvt_cuda_attention& args);
inline bool has_attend_kernel(unsigned head_dim_k, unsigned head_dim_v) {
  return (head_dim_k == head_dim_v && (head_dim_k == 64 || head_dim_k == 128 || head_dim_k == 256)) ||
         (head_dim_k == 192 && head_dim_v == 128);
}
inline uint64_t count_list_pages(const kvt_cuda_attention& a) {
  return uint64_t{a.n_streams} * a.n_kv_heads * ((uint64_t{a.max_cells} + kPageTokens - 1) / kPageTokens);
}

}  // namespace kvt::cuda

#endif
