// What every attention pass needs: query rows, masks, the running state. Included by the kernel files; internal linkage.
#ifndef KVT_CPU_ATTEND_COMMON_H
#define KVT_CPU_ATTEND_COMMON_H

#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/attend_scratch.h"

namespace kvt::cpu {
namespace {

struct Half {
  uint8_t bytes[2];  // fp16 in a page: no alignment
};

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

inline unsigned row_count(const AttendBlock& b) { return b.n_queries * b.n_group; }

inline const float* query_row(const AttendBlock& b, unsigned row) {
  return reinterpret_cast<const float*>(b.q + row / b.n_group * b.q_query_stride + row % b.n_group * b.q_head_stride);
}

// Mask rows of a block: one for each query, or for each query row where heads have masks of their own.
inline unsigned mask_row_count(const AttendBlock& b) { return b.mask_head_stride != 0 ? row_count(b) : b.n_queries; }

// fp16 masks of mask row m, one for each cell of the stream. Only if the block has masks.
inline const uint8_t* mask_row(const AttendBlock& b, unsigned m) {
  const unsigned query = b.mask_head_stride != 0 ? m / b.n_group : m, head = b.mask_head_stride != 0 ? m % b.n_group : 0;
  return b.mask + query * b.mask_query_stride + head * b.mask_head_stride;
}

// Additive masks of one page. Returns false if no row sees any cell of the page.
template <class Isa>
bool page_masks(const AttendBlock& b, unsigned first, unsigned n, float* mask) {
  bool any = false;
  for (unsigned i = 0; i < mask_row_count(b); ++i) {
    float* to = mask + size_t{i} * 64;
    if (b.mask == nullptr) {
      for (unsigned t = 0; t < 64; ++t) to[t] = t < n ? 0.0f : kMinusInfinity;
      any = any || n > 0;
      continue;
    }
    any = Isa::load_mask(mask_row(b, i) + size_t{first} * 2, n, to) || any;
  }
  return any;
}

inline const float* mask_of_row(const AttendBlock& b, const float* mask, unsigned row) {
  return mask + size_t{b.mask_head_stride != 0 ? row : row / b.n_group} * 64;
}

inline float slope_of_row(const AttendBlock& b, unsigned row) { return b.slopes != nullptr ? b.slopes[row % b.n_group] : 1.0f; }

inline void apply_softcap(float softcap, float* score) {
  for (unsigned t = 0; t < 64; ++t) score[t] = softcap * std::tanh(score[t]);
}

// probability = exp(score - new maximum) for rows row .. row + n; rescale: the factor exp(old - new) of what was summed before.
// All rows take one step before any takes the next: each step is a chain of dependent operations, and the chains run side by side.
// kInOrder: probabilities are added one by one, so that zeros before, between and behind them change nothing: where a cell stands among
// the 64 then depends on the queries of its block, and the result must not.
template <class Isa, bool kInOrder = false>
void exp_rows(const AttendBlock& b, unsigned row, unsigned n, const float* new_max, const float* score, float* probability,
              float* rescale) {
  for (unsigned i = 0; i < n; ++i) {
    const unsigned r = row + i;
    const float shift = new_max[i] == kMinusInfinity ? 0.0f : new_max[i];  // a row without cells so far: -inf - -inf is a NaN
    rescale[r] = Isa::exp_one(b.row_max[r] - shift);
    float* p = probability + size_t{i} * 64;
    const float sum = Isa::exp_scores(score + size_t{i} * 64, shift, p);
    b.row_sum[r] *= rescale[r];
    if constexpr (!kInOrder) b.row_sum[r] += sum;
    b.row_max[r] = new_max[i];
  }
  for (unsigned t = 0; kInOrder && t < 64; ++t) {
    for (unsigned i = 0; i < n; ++i) b.row_sum[row + i] += probability[size_t{i} * 64 + t];
  }
}

inline void clear_state(const AttendBlock& b) {
  for (unsigned row = 0; row < row_count(b); ++row) {
    b.row_max[row] = kMinusInfinity;
    b.row_sum[row] = 0;
  }
  std::memset(b.acc, 0, size_t{row_count(b)} * b.value->head_dim * sizeof(float));
}

}  // namespace
}  // namespace kvt::cpu

#endif
