// Which cells a query row sees, and its scores' extras (softcap, mask): the slow path of a page, taken where it matters.
#ifndef KVT_CUDA_ROW_VISIBILITY_CUH
#define KVT_CUDA_ROW_VISIBILITY_CUH

#include <cuda_fp16.h>

#include "cuda/cuda_attend.h"

namespace kvt::cuda {
namespace {

constexpr float kLog2e = 1.4426950408889634f;

// The cells first .. end - 1 are those that a row sees, but for the mask. cells: of the stream.
__device__ __forceinline__ int visible_end(const AttendCall& call, uint32_t row, int cells) {
  const kvt_cuda_attention& a = call.args;
  if (row >= call.n_rows) return 0;
  return cells - (a.causal ? static_cast<int>(a.n_queries - 1 - row / a.n_group) : 0);
}

struct RowView {
  int first, end;
  const __half* mask;
  float slope, softcap;

  __device__ RowView(const AttendCall& call, uint32_t stream, uint32_t head, uint32_t row, int length) {
    const kvt_cuda_attention& a = call.args;
    const uint32_t query = row / a.n_group, q_head = head * a.n_group + row % a.n_group;
    first = static_cast<int>(a.n_exact);
    end = visible_end(call, row, length);
    mask = a.mask == nullptr
               ? nullptr
               : reinterpret_cast<const __half*>(reinterpret_cast<const char*>(a.mask) + stream * a.mask_stream_stride +
                                                 q_head * a.mask_head_stride + query * a.mask_query_stride);
    slope = a.slopes == nullptr || row >= call.n_rows ? 1.0f : a.slopes[q_head];
    softcap = a.logit_softcap;
  }
  // Base-2 score of a cell that is seen: softcap and mask. -inf: removed by the mask.
  __device__ float finish(float score, int cell) const {
    if (softcap > 0) score = softcap * tanhf(score / (kLog2e * softcap)) * kLog2e;
    if (mask != nullptr) {
      const float bias = __half2float(mask[cell]);
      score = bias == -INFINITY ? -INFINITY : score + slope * bias * kLog2e;
    }
    return score;
  }
  // The same for any cell; a removed one is selected away, so that nothing of it arrives.
  __device__ float score(float raw, int cell) const { return cell >= first && cell < end ? finish(raw, cell) : -INFINITY; }
};

// The pages first .. end - 1 of a stream need nothing but scores: every row sees all of their cells, without mask and softcap.
struct PlainPages {
  int first, end;
  bool extras;  // mask or softcap

  __device__ PlainPages(const AttendCall& call, int cells) {
    const kvt_cuda_attention& a = call.args;
    first = a.n_exact > 0;
    extras = a.mask != nullptr || a.logit_softcap > 0;
    end = extras ? 0 : (cells - (a.causal ? static_cast<int>(a.n_queries) - 1 : 0)) / static_cast<int>(kPageTokens);
  }
  __device__ __forceinline__ bool has(int page) const { return page >= first && page < end; }
};

}  // namespace
}  // namespace kvt::cuda

#endif
