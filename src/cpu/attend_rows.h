// Attention over fp16 rows, in fp32: the codec f16, and the exact rows beside codes. Included by the kernel files; internal linkage.
#ifndef KVT_CPU_ATTEND_ROWS_H
#define KVT_CPU_ATTEND_ROWS_H

#include "cpu/attend_common.h"

namespace kvt::cpu {
namespace {

// Scaled queries.
inline void prepare_row_queries(const AttendBlock& b, const HalfScratch& half) {
  const unsigned d = b.key->head_dim;
  const float score_scale = b.softcap > 0 ? b.scale / b.softcap : b.scale;
  for (unsigned row = 0; row < row_count(b); ++row) {
    const float* q = query_row(b, row);
    for (unsigned i = 0; i < d; ++i) half.query[size_t{row} * d + i] = q[i] * score_scale;
  }
}

// Adds n <= 64 cells to the state: k [n][head_dim_k] and v [n][head_dim_v] fp16, their masks in soft.mask. next_k: what is read next.
// kInOrder: see exp_rows.
template <class Isa, bool kInOrder>
void attend_rows(const AttendBlock& b, const SoftmaxScratch& soft, const HalfScratch& half, const uint8_t* k, const uint8_t* v, unsigned n,
                 const uint8_t* next_k) {
  const unsigned rows = row_count(b), d_k = b.key->head_dim, d_v = b.value->head_dim;
  // Every four query rows convert the fp16 rows anew: that costs less than a second copy of them in the first-level cache.
  for (unsigned row = 0; row < rows; row += 4) {
    const unsigned block = rows - row < 4 ? rows - row : 4;
    const float* query = half.query + size_t{row} * d_k;
    Isa::dot_rows(reinterpret_cast<const Half*>(k), v - k, n, query, block, d_k, soft.score);
    float new_max[4];
    for (unsigned i = 0; i < block; ++i) {
      const unsigned r = row + i;
      float* score = soft.score + size_t{i} * 64;
      if (b.softcap > 0) apply_softcap(b.softcap, score);
      new_max[i] = Isa::mask_scores(mask_of_row(b, soft.mask, r), slope_of_row(b, r), b.row_max[r], score);
    }
    exp_rows<Isa, kInOrder>(b, row, block, new_max, soft.score, soft.probability + size_t{row} * 64, soft.rescale);
  }
  for (unsigned row = 0; row < rows; row += 4) {
    const unsigned block = rows - row < 4 ? rows - row : 4;
    const float* probability = soft.probability + size_t{row} * 64;
    float* acc = b.acc + size_t{row} * d_v;
    Isa::accumulate_rows(reinterpret_cast<const Half*>(v), next_k - v, n, probability, block, d_v, soft.rescale + row, acc);
  }
}

// The codec f16.
template <class Isa>
void attend_halves(const AttendBlock& b) {
  ScratchArena arena(b.scratch);
  const SoftmaxScratch soft(arena);
  const HalfScratch half(arena, b.key->head_dim, b.value->head_dim);
  prepare_row_queries(b, half);
  clear_state(b);
  for (unsigned first = b.first_cell; first < b.end_cell; first += 64) {
    const unsigned n = b.end_cell - first < 64 ? b.end_cell - first : 64;
    if (!page_masks<Isa>(b, first, n, soft.mask)) continue;
    const uint8_t* k_page = b.k_pages + first / 64 * b.k_page_stride;
    attend_rows<Isa, false>(b, soft, half, k_page, b.v_pages + first / 64 * b.v_page_stride, n, k_page + b.k_page_stride);
  }
}

}  // namespace
}  // namespace kvt::cpu

#endif
