// Scores of key means for the query rows of a block: a few runs of cells at a time, in shared memory, so that a page's rows find theirs
// by one load.
#ifndef KVT_CUDA_MEAN_SCORES_CUH
#define KVT_CUDA_MEAN_SCORES_CUH

#include <type_traits>

#include "cuda/cuda_attend.h"
#include "cuda/element_types.cuh"
#include "cuda/softmax_state.cuh"
#include "cuda/warp_rotation.cuh"

namespace kvt::cuda {
namespace {

constexpr int kMeanRuns = 32;  // that are held

// Base-2 scores of runs first_run .. first_run + n_runs - 1: to[run][row], n_rows rows from base_row on. For the whole block.
template <class Shape>
__device__ __noinline__ void score_means(const AttendCall& call, uint32_t stream, uint32_t head, int base_row, int n_rows, int first_run,
                                         int n_runs, float* to) {
  using Row = WarpRow<Shape::kDimK>;
  using Word = std::conditional_t<Row::kRun == 2, uint16_t, std::conditional_t<Row::kRun == 4, uint32_t, uint2>>;
  static_assert(sizeof(Word) == Row::kRun);
  constexpr int kBatch = 8;  // runs whose latencies overlap
  const kvt_cuda_attention& a = call.args;
  const int lane = threadIdx.x % 32, n_batches = (n_runs + kBatch - 1) / kBatch;
  for (int item = threadIdx.x / 32; item < n_rows * n_batches; item += blockDim.x / 32) {
    const int r = item % n_rows, batch = item / n_rows * kBatch;
    const uint32_t row = base_row + r;
    const bool is_row = row < call.n_rows;
    const char* from = static_cast<const char*>(a.q) + stream * a.q_stream_stride + row / a.n_group * a.q_query_stride +
                       (head * a.n_group + row % a.n_group) * a.q_head_stride;
    float q[Row::kCount], unit[kBatch];
    Word codes[kBatch][Row::kOdd];
#pragma unroll
    for (int i = 0; i < Row::kCount; ++i) q[i] = is_row ? load_element(from, a.q_type, Row::coordinate(i, lane)) : 0.0f;
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int run = first_run + min(batch + k, n_runs - 1);
      const int8_t* mean = call.means.codes_of(stream, head, run, Shape::kDimK);
      unit[k] = call.means.unit_of(stream, head, run);
#pragma unroll
      for (int i = 0; i < Row::kOdd; ++i) codes[k][i] = *reinterpret_cast<const Word*>(mean + i * Row::kPower + lane * Row::kRun);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      float dot = 0;
#pragma unroll
      for (int i = 0; i < Row::kCount; ++i)
        dot = fmaf(q[i], static_cast<float>(reinterpret_cast<const int8_t*>(&codes[k][i / Row::kRun])[i % Row::kRun]), dot);
      dot = warp_sum(dot);
      if (lane == 0 && batch + k < n_runs) to[(batch + k) * n_rows + r] = call.mean_factor * unit[k] * dot;
    }
  }
}

// Where a warp is among the runs of a unit's pages, which it visits in order. Little is kept: registers are short where it is used.
template <class Shape>
class MeanScores {
  static_assert(kMeanRuns * 8 <= kMergeWarps * (Shape::kDimV + 4));  // up to 8 row warps, in the accumulators' place

 public:
  // Holds the runs from that of page `first` on; returns the first page beyond them, `end` at most. For the whole block. area: free until
  // the block's warps combine.
  __device__ __forceinline__ int hold(const AttendCall& call, uint32_t stream, uint32_t head, int base_row, int first, int end, float* area) {
    const int run_pages = call.mean_pages, first_run = first / run_pages;
    end = min(end, (first_run + kMeanRuns) * run_pages);
    score_means<Shape>(call, stream, head, base_row, call.n_row_warps * Shape::kRows, first_run, (end - 1) / run_pages - first_run + 1, area);
    end_of_run_ = (first_run + 1) * run_pages;
    at_ = 0;
    return end;
  }
  // Of a row of the block, at a page.
  __device__ __forceinline__ const float* at_page(const AttendCall& call, int page, const float* area) {
    while (page >= end_of_run_) {
      end_of_run_ += call.mean_pages;
      at_ += call.n_row_warps * Shape::kRows;
    }
    return area + at_;
  }

 private:
  int at_, end_of_run_;  // of the run at hand: where its scores are, and the first page beyond it
};

}  // namespace
}  // namespace kvt::cuda

#endif
