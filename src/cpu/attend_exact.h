// Cells that are attended through fp16 rows instead of their codes: the first cells of a stream and, for each query, the newest that
// it sees (kvt_attention, docs/algorithm.md 6). Included by the kernel files; internal linkage.
//
// One pass takes the rows before any codes, as pages of fp16 with masks of their own, and turns its output into the rotated basis in
// which codes accumulate. Every pass over codes masks these cells out.
#ifndef KVT_CPU_ATTEND_EXACT_H
#define KVT_CPU_ATTEND_EXACT_H

#include "cpu/attend_rows.h"
#include "format/half.h"
#include "format/rotation_tables.h"

namespace kvt::cpu {
namespace {

// Which cells those are, for each mask row of a block.
class ExactCells {
 public:
  ExactCells(const AttendBlock& b, ScratchArena& arena) : b_(b), window_(arena) {
    for (unsigned t = 0; t < b.n_exact; t += kPageTokens) mark_page(t);
    for (unsigned m = 0; m < mask_row_count(b); ++m) window_.count[m] = find_window(m);
  }

  bool is_empty() const { return pages_ == 0; }
  // False: no exact cell is on the page that begins at cell first. True: there may be one.
  bool touches_page(unsigned first) const { return pages_ >> (first / kPageTokens % 64) & 1; }

  // Masks the exact cells of a page out of its masks. Returns whether any other cell is left to see.
  bool leave_out(unsigned first, float* mask) const {
    bool any = false;
    for (unsigned m = 0; m < mask_row_count(b_); ++m) {
      float* row = mask + size_t{m} * kPageTokens;
      for (unsigned t = first; t < b_.n_exact && t < first + kPageTokens; ++t) row[t - first] = kMinusInfinity;
      for (unsigned i = 0; i < window_.count[m]; ++i) {
        const unsigned t = cell_at(m, i) - first;  // wraps for cells before the page
        if (t < kPageTokens) row[t] = kMinusInfinity;
      }
      for (unsigned t = 0; t < kPageTokens; ++t) any |= row[t] != kMinusInfinity;
    }
    return any;
  }

  // Rows, numbered: the first cells, then the entries that some mask row attends and those between them.
  unsigned n_rows() const { return n_first() + (begin_ < end_ ? end_ - begin_ : 0); }
  // n rows from row `first` on, one after another: where they are, or copied to scratch. rows_of_first, rows_of_entries: of that side.
  const uint8_t* rows(unsigned first, unsigned n, const uint8_t* rows_of_first, const uint8_t* rows_of_entries, size_t row_bytes,
                      uint8_t* scratch) const {
    if (first >= n_first()) return rows_of_entries + (begin_ + first - n_first()) * row_bytes;
    const unsigned left = n_first() - first, n_copied = n < left ? n : left;
    std::memcpy(scratch, rows_of_first + first * row_bytes, n_copied * row_bytes);
    if (n > n_copied) std::memcpy(scratch + n_copied * row_bytes, rows_of_entries + begin_ * row_bytes, (n - n_copied) * row_bytes);
    return scratch;
  }
  // Masks of 64 rows from row `first` on: what a mask row does not attend exactly is masked out.
  void row_masks(unsigned first, float* mask) const {
    for (unsigned m = 0; m < mask_row_count(b_); ++m) {
      float* to = mask + size_t{m} * kPageTokens;
      for (unsigned t = 0; t < kPageTokens; ++t) to[t] = kMinusInfinity;
      for (unsigned cell = first; cell < n_first() && cell < first + kPageTokens; ++cell) to[cell - first] = value_at(m, cell);
      for (unsigned i = 0; i < window_.count[m]; ++i) {
        const unsigned t = n_first() + window_.entry[size_t{m} * WindowScratch::kMost + i] - begin_ - first;
        if (t < kPageTokens) to[t] = value_at(m, cell_at(m, i));
      }
    }
  }

 private:
  static constexpr uint16_t kHalfMinusInfinity = 0xfc00;

  unsigned cell_at(unsigned m, unsigned i) const {
    return static_cast<unsigned>(b_.recent_cells[window_.entry[size_t{m} * WindowScratch::kMost + i]]);
  }
  unsigned n_first() const { return b_.n_exact < b_.n_cells ? b_.n_exact : b_.n_cells; }
  float value_at(unsigned m, unsigned cell) const { return b_.mask != nullptr ? half_to_float(mask_at(m, cell)) : 0.0f; }
  uint16_t mask_at(unsigned m, unsigned cell) const {
    uint16_t h;
    std::memcpy(&h, mask_row(b_, m) + size_t{cell} * 2, sizeof h);
    return h;
  }
  void mark_page(unsigned cell) { pages_ |= uint64_t{1} << (cell / kPageTokens % 64); }

  // From the newest entry backwards.
  unsigned find_window(unsigned m) {
    if (b_.n_recent == 0) return 0;
    const unsigned query = b_.mask_head_stride != 0 ? m / b_.n_group : m;
    unsigned e = b_.recent_own + query + 1, count = 0;
    if (e > b_.n_recent) e = b_.n_recent;
    while (e-- > b_.recent_pinned && count < b_.recent_window) count += take(m, e, count);
    for (e = 0; e < b_.recent_pinned; ++e) count += take(m, e, count);
    return count;
  }
  // Entry e becomes number `count` of a mask row's, unless that does not see it. Returns whether it did.
  bool take(unsigned m, unsigned e, unsigned count) {
    const int64_t cell = b_.recent_cells[e];
    if (cell < b_.n_exact || cell >= b_.n_cells) return false;  // -1, no entry, too
    if (b_.mask != nullptr && mask_at(m, static_cast<unsigned>(cell)) == kHalfMinusInfinity) return false;
    window_.entry[size_t{m} * WindowScratch::kMost + count] = e;
    mark_page(static_cast<unsigned>(cell));
    if (e < begin_) begin_ = e;
    if (e >= end_) end_ = e + 1;
    return true;
  }

  const AttendBlock& b_;
  WindowScratch window_;
  uint64_t pages_ = 0;  // bit p % 64: an exact cell may be on page p
  unsigned begin_ = ~0u, end_ = 0;
};

// Starts the state with the exact rows.
template <class Isa>
void attend_exact(const AttendBlock& b, const ExactCells& exact, const SoftmaxScratch& soft, const HalfScratch& half) {
  if (exact.is_empty()) return;
  const unsigned d_k = b.key->head_dim, d_v = b.value->head_dim;
  prepare_row_queries(b, half);
  for (unsigned first = 0; first < exact.n_rows(); first += kPageTokens) {
    const unsigned n = exact.n_rows() - first < kPageTokens ? exact.n_rows() - first : kPageTokens;
    exact.row_masks(first, soft.mask);
    const uint8_t* k = exact.rows(first, n, b.exact_k, b.recent_k, size_t{d_k} * 2, half.key_rows);
    const uint8_t* v = exact.rows(first, n, b.exact_v, b.recent_v, size_t{d_v} * 2, half.value_rows);
    attend_rows<Isa, true>(b, soft, half, k, v, n, k);
  }
  // Codes accumulate sums of weight * level; finish_row multiplies R^T of them by step / d. So a value v counts as R v / step.
  for (unsigned row = 0; row < row_count(b); ++row) {
    if (b.row_max[row] == kMinusInfinity) continue;
    float* acc = b.acc + size_t{row} * d_v;
    Isa::rotate_forward(kSignsRotation, d_v, acc);  // sqrt(d) * R acc
    for (unsigned i = 0; i < d_v; ++i) acc[i] /= b.value->table->step;
  }
}

}  // namespace
}  // namespace kvt::cpu

#endif
