// Online softmax of the rows of a warp, and how warps of a block combine (docs/algorithm.md section 7). Scores are base-2
// logarithms.
#ifndef KVT_CUDA_SOFTMAX_STATE_CUH
#define KVT_CUDA_SOFTMAX_STATE_CUH

#include "cuda/cuda_attend.h"
#include "cuda/warp_mma.cuh"

namespace kvt::cuda {
namespace {

// The reference of a row's weights moves only when its maximum has grown by more than this: weights reach 2^8, and rescaling is
// rare.
constexpr float kLazyGrowth = 8.0f;

// Row r of row block i: lanes 4r .. 4r + 3 hold it. acc[tile][2 i + j]: accumulators of that row.
template <int kRowBlocks, int kTiles>
struct SoftmaxState {
  float reference[kRowBlocks], sum[kRowBlocks];
  float acc[kTiles][2 * kRowBlocks];
  float bias[kRowBlocks];  // that every accumulator of a row has too much

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
      reference[i] = -INFINITY;
      sum[i] = 0;
      bias[i] = 0;
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 2 * kRowBlocks; ++j) acc[t][j] = 0;
    }
  }
  // largest: of the new scores of each row, the same in its four lanes.
  __device__ __forceinline__ void make_room(const float (&largest)[kRowBlocks]) {
    bool grown = false;
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) grown = grown || largest[i] > reference[i] + kLazyGrowth;
    if (!__any_sync(0xffffffffu, grown)) return;
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
      if (!(largest[i] > reference[i] + kLazyGrowth)) continue;
      const float factor = exp2_fast(reference[i] - largest[i]);
      reference[i] = largest[i];
      sum[i] *= factor;
      bias[i] *= factor;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        acc[t][2 * i] *= factor;
        acc[t][2 * i + 1] *= factor;
      }
    }
  }
};

constexpr int kMergeWarps = 4;  // warps whose accumulators fit side by side in shared memory

// Shared memory of the combination: [kMergeWarps][rows][kDimV + 4] fp32, then maxima and sums [warps][rows].
template <int kRows, int kDimV>
__host__ __device__ constexpr int combine_bytes(int n_warps) {
  return (kMergeWarps * kRows * (kDimV + 4) + 2 * n_warps * kRows) * 4;
}

// Adds up the page warps of each row warp and writes the block's partial result of the unit. For the whole block.
// base_row: the first row of the block. dim(tile, column): the coordinate of an accumulator, column 0 or 1. kSplitV row warps
// in turn have the same rows and consecutive parts of the coordinates. Ends with a barrier.
template <int kRowBlocks, int kTiles, int kDimV, int kSplitV, class Dim>
__device__ void combine_warps(const AttendCall& call, SoftmaxState<kRowBlocks, kTiles>& state, float* area, uint32_t slot,
                              int base_row, const Dim& dim) {
  constexpr int kRows = 8 * kRowBlocks, kPitch = kDimV + 4, kPartV = kDimV / kSplitV;
  const int n_warps = blockDim.x / 32, n_row_warps = call.n_row_warps, n_page_warps = n_warps / n_row_warps;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
  const int row_warp = warp % n_row_warps, page_warp = warp / n_row_warps;
  float* maxima = area + kMergeWarps * kRows * kPitch;  // [row warp][page warp][row]
  float* sums = maxima + n_warps * kRows;
  const int own = (row_warp * n_page_warps + page_warp) * kRows;
#pragma unroll
  for (int i = 0; i < kRowBlocks; ++i) {
    float sum = state.sum[i];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (c == 0) {
      maxima[own + 8 * i + r] = state.reference[i];
      sums[own + 8 * i + r] = sum;
    }
  }
  __syncthreads();
  float factor[kRowBlocks];
#pragma unroll
  for (int i = 0; i < kRowBlocks; ++i) {
    float largest = -INFINITY;
    for (int w = 0; w < n_page_warps; ++w) largest = fmaxf(largest, maxima[(row_warp * n_page_warps + w) * kRows + 8 * i + r]);
    factor[i] = state.reference[i] == -INFINITY ? 0.0f : exp2_fast(state.reference[i] - largest);
  }
  for (int rows_of = 0; rows_of < n_row_warps; ++rows_of) {
    const int first_row = base_row + rows_of / kSplitV * kRows, n_rows = min(kRows, static_cast<int>(call.n_rows) - first_row);
    const int first_dim = rows_of % kSplitV * kPartV;
    for (int round = 0; round * kMergeWarps < n_page_warps; ++round) {
      if (row_warp == rows_of && page_warp / kMergeWarps == round) {
        float* mine = area + page_warp % kMergeWarps * kRows * kPitch;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
#pragma unroll
          for (int j = 0; j < 2 * kRowBlocks; ++j) {
            float& to = mine[(8 * (j / 2) + r) * kPitch + dim(t, j % 2)];
            const float x = state.acc[t][j] * factor[j / 2];
            to = round == 0 ? x : to + x;
          }
        }
      }
      __syncthreads();
    }
    float* acc = call.partial_acc + (static_cast<size_t>(slot) * call.n_rows + first_row) * kDimV;
    const int n_parts = min(kMergeWarps, n_page_warps);
    for (int e = threadIdx.x; e < n_rows * kPartV; e += blockDim.x) {
      const int row = e / kPartV, at = first_dim + e % kPartV;
      float total = 0;
      for (int w = 0; w < n_parts; ++w) total += area[w * kRows * kPitch + row * kPitch + at];
      acc[row * kDimV + at] = total;
    }
    for (int row = threadIdx.x; row < n_rows; row += blockDim.x) {
      const float *m = maxima + rows_of * n_page_warps * kRows + row, *l = sums + rows_of * n_page_warps * kRows + row;
      float largest = -INFINITY, total = 0;
      for (int w = 0; w < n_page_warps; ++w) largest = fmaxf(largest, m[w * kRows]);
      for (int w = 0; w < n_page_warps; ++w) {  // where no score was a number the sum is 0, or NaN and stays so
        total += m[w * kRows] == -INFINITY ? l[w * kRows] : l[w * kRows] * exp2_fast(m[w * kRows] - largest);
      }
      call.partial_max[static_cast<size_t>(slot) * call.n_rows + first_row + row] = largest;
      call.partial_sum[static_cast<size_t>(slot) * call.n_rows + first_row + row] = total;
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace kvt::cuda

#endif
