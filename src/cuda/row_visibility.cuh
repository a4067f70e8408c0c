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
    first = static_cast<int>(call.exact_k.n_first);
    end = visible_end(call, row, length);
    mask = a.mask == nullptr
               ? nullptr
               : reinterpret_cast<const __half*>(reinterpret_cast<const char*>(a.mask) + stream * a.mask_stream_stride +
                                                 q_head * a.mask_head_stride + query * a.mask_query_stride);
    slope = a.slopes == nullptr || row >= call.n_rows ? 1.0f : a.slopes[q_head];
    softcap = a.logit_softcap;
  }
  // Base-2 score of a cell with this mask value: softcap and mask. -inf: removed by the mask.
  __device__ float finish(float score, float bias) const {
    if (softcap > 0) score = softcap * tanhf(score / (kLog2e * softcap)) * kLog2e;
    return bias == -INFINITY ? -INFINITY : score + slope * bias * kLog2e;
  }
  // The same for any cell; a removed one is selected away, so that nothing of it arrives.
  __device__ float score(float raw, int cell) const {
    if (cell < first || cell >= end) return -INFINITY;
    return finish(raw, mask == nullptr ? 0.0f : __half2float(mask[cell]));
  }
};

// The pages first .. end - 1 of a stream need nothing but scores: every row sees all of their cells, without mask and softcap.
struct PlainPages {
  int first, end;
  bool extras;  // mask, softcap or a prepared step

  __device__ PlainPages(const AttendCall& call, int cells) {
    const kvt_cuda_attention& a = call.args;
    first = call.step == nullptr && call.exact_k.n_first > 0;
    const bool has_rules = a.mask != nullptr || a.logit_softcap > 0;
    extras = has_rules || call.step != nullptr;
    end = has_rules ? 0 : (cells - (a.causal ? static_cast<int>(a.n_queries) - 1 : 0)) / static_cast<int>(kPageTokens);
  }
  __device__ __forceinline__ bool has(int page) const { return page >= first && page < end; }
};

// What a prepared step says of a stream's pages (step_layout.h). Without a step every page is seen whole by all queries.
struct StepPages {
  const uint16_t* pages;
  uint32_t all;

  __device__ StepPages(const AttendCall& call, uint32_t stream) : all((1u << call.args.n_queries) - 1) {
    pages = call.step == nullptr ? nullptr
                                 : reinterpret_cast<const uint16_t*>(call.step + StepShape::pages_offset()) +
                                       static_cast<size_t>(stream) * call.step_shape.n_pages();
  }
  __device__ __forceinline__ static bool is_seen(uint32_t bits) { return (bits & 0xffu) != 0; }
  __device__ __forceinline__ bool is_whole(uint32_t bits) const { return bits >> 8 == all; }
};

// The bits of the pages that a warp visits one after another, at equal distances from a first one. A lane holds those of every 32nd: a
// load for each page would be waited for together with other loads, on the hot path. For a whole warp.
class StepBits {
 public:
  __device__ __forceinline__ void restart() { n_given_ = 0; }
  __device__ __forceinline__ uint32_t next(const StepPages& step, int page, int distance, int n_pages) {
    if (step.pages == nullptr) return step.all | step.all << 8;
    if (n_given_ % 32 == 0) {
      const int at = page + static_cast<int>(threadIdx.x % 32) * distance;
      held_ = at < n_pages ? step.pages[at] : 0;
    }
    return __shfl_sync(0xffffffffu, held_, n_given_++ % 32);
  }

 private:
  uint32_t held_ = 0;
  int n_given_ = 0;
};

}  // namespace
}  // namespace kvt::cuda

#endif
