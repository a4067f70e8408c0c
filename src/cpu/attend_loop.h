// The attention pass, common to all instruction sets: block-wise online softmax over pages (docs/algorithm.md section 7).
// Included by each kernels_<isa>.cc, which provides the trait class Isa; everything here has internal linkage, since each file is
// compiled with its own instruction-set flags and must not share inline code with the others.
//
// One page, all rows: masks; unpack keys once; for four rows at a time integer scores and softmax weights; unpack values once;
// integer accumulation; one fp32 fold per row and page.
//
// A cell is removed (mask -inf, or past end_cell) by selection, never by arithmetic: NaN or Inf norms of removed cells cannot leak.
#ifndef KVT_CPU_ATTEND_LOOP_H
#define KVT_CPU_ATTEND_LOOP_H

#include <cmath>
#include <cstring>
#include <numbers>

#include "cpu/attend_exact.h"
#include "cpu/attend_rows.h"
#include "cpu/attend_scratch.h"
#include "cpu/expand_codes.h"
#include "format/rotation_tables.h"

namespace kvt::cpu {
namespace {

// How the nibbles of a key page become levels.
enum class KeyKind { kScalar, kSigns, kTrellis };

// Vector kernels read trellis values in blocks of 64 dims; the rest lines of other head dims are left to plain loops.
inline bool has_value_blocks_only(const SideLayout& value) { return !value.table->trellis || value.head_dim % 64 == 0; }

// Calls work.operator()<R>() with R = n, for 1 <= n <= kMax: kernels keep the sums of a constant number of rows in registers.
template <unsigned kMax, class Work>
inline void with_rows(unsigned n, Work work) {
  if constexpr (kMax > 1) {
    if (n < kMax) return with_rows<kMax - 1>(n, work);
  }
  work.template operator()<kMax>();
}

// The level at each index that nibbles yield: m_bits bits of which the code's bits m are the lowest, then for a trellis z1 and z0
// (format.md 4.4). Entries repeat past n_levels, so that sign bits and other leftovers above an index do not matter.
inline void fill_levels(const LevelTable& table, unsigned m_bits, int offset, uint8_t* levels) {
  for (unsigned i = 0; i < 64; ++i) {
    const unsigned m = i & ((1u << (table.bits - 1)) - 1), z1 = i >> m_bits & 1, z0 = i >> (m_bits + 1) & 1;
    const unsigned index = table.trellis ? m << 2 | z1 << 1 | z0 : i & (table.n_levels() - 1);
    levels[i] = static_cast<uint8_t>(table.levels[index] + offset);
  }
}

// int8 image of a rotated query: q8 = round(v / unit), ties to even, with two bounds that keep every kernel exact in int16:
// |q8| <= 127, and the |q8| of the eight dims that share an int16 lane add up to at most 254 + 8 * 0.5 = 258 (kLanes below).
// Returns unit; 0 for a zero query.
template <bool kBoundLanes>
float quantise_query(const float* v, unsigned d, int8_t* q8, int32_t* sum) {
  float largest = 0;
  for (unsigned i = 0; i < d; ++i) largest = std::fabs(v[i]) > largest ? std::fabs(v[i]) : largest;
  float unit = largest / 127.0f;
  if constexpr (kBoundLanes) {
    for (unsigned base = 0; base < d; base += 16) {
      float lane[2] = {};
      for (unsigned i = 0; i < 16; ++i) lane[i / 2 % 2] += std::fabs(v[base + i]);
      for (float total : lane) unit = total / 254.0f > unit ? total / 254.0f : unit;
    }
  }
  const float inverse = unit > 0 ? 1.0f / unit : 0.0f;
  int32_t total = 0;
  for (unsigned i = 0; i < d; ++i) {
    const float scaled = std::nearbyint(v[i] * inverse);
    // Written so that a NaN query gives 0 here; its factor below carries the NaN.
    const int q = scaled >= -127.0f ? (scaled <= 127.0f ? static_cast<int>(scaled) : 127) : (scaled < -127.0f ? -127 : 0);
    q8[i] = static_cast<int8_t>(q);
    total += q;
  }
  *sum = total;
  return unit;
}

// NaN if v holds a value that is not finite, else 0: added to factors so that such a query gives NaN, as in fp16.
inline float poison_of(const float* v, unsigned d) {
  float sum = 0;
  for (unsigned i = 0; i < d; ++i) sum += v[i] * 0.0f;
  return sum;
}

template <class Isa>
void prepare_code_queries(const AttendBlock& b, const CodeScratch& s) {
  const unsigned d = b.key->head_dim;
  const float root_d = std::sqrt(static_cast<float>(d));
  const float score_scale = b.softcap > 0 ? b.scale / b.softcap : b.scale;
  for (unsigned row = 0; row < row_count(b); ++row) {
    alignas(64) float v[kMaxHeadDim];
    std::memcpy(v, query_row(b, row), d * sizeof(float));
    if (b.key_scale != nullptr) {
      for (unsigned i = 0; i < d; ++i) v[i] *= b.key_scale[i];
    }
    const float poison = poison_of(v, d);
    Isa::rotate_forward(kSignsRotation, d, v);  // sqrt(d) * R q
    int32_t sum;
    const float unit = quantise_query<true>(v, d, s.query + size_t{row} * d, &sum);
    // <q, k> = (n / sqrt(d)) * step * <L, R q>
    s.query_factor[row] = score_scale * b.key->table->step * unit / static_cast<float>(d) + poison;
    s.query_offset[row] = kLevelOffset * sum;
    if (b.key->has_residual) {
      Isa::rotate_forward(kSignsSketch, d, v);  // d * S R q
      const float sketch_unit = quantise_query<false>(v, d, s.sketch_query + size_t{row} * d, &s.sketch_sum[row]);
      // r * sqrt(pi/2) / sqrt(d) * <s, S R q>
      s.sketch_factor[row] = score_scale * std::sqrt(std::numbers::pi_v<float> / 2) / root_d * sketch_unit / static_cast<float>(d);
    }
  }
}

template <class Isa>
void prepare_codes(const AttendBlock& b, const CodeScratch& s) {
  fill_levels(*b.key->table, 3, kLevelOffset, s.key_levels);
  fill_levels(*b.value->table, b.value->code_bits == 4 ? 3 : 2, 0, s.value_levels);
  prepare_code_queries<Isa>(b, s);
}

// Scores of the mean that was subtracted from the keys of cell first and its neighbours, for all rows.
inline void score_means(const AttendBlock& b, unsigned first, float* mean_score) {
  constexpr unsigned kLanes = 16;  // of the sum, side by side; head dims are multiples of it
  const unsigned d = b.key->head_dim, m = first / b.mean_cells;
  const int8_t* mean = b.key_mean + size_t{m} * d;
  const float factor = (b.softcap > 0 ? b.scale / b.softcap : b.scale) * b.key_mean_unit[m];
  for (unsigned row = 0; row < row_count(b); ++row) {
    const float* q = query_row(b, row);
    float lane[kLanes] = {};
    for (unsigned i = 0; i < d; i += kLanes) {
      for (unsigned l = 0; l < kLanes; ++l) lane[l] += q[i + l] * static_cast<float>(mean[i + l]);
    }
    float sum = 0;
    for (float x : lane) sum += x;
    mean_score[row] = factor * sum;
  }
}

// The codes of a page in a packing that the kernels read: the page itself, or what it expands to in scratch.
template <class Isa>
const uint8_t* readable_keys(const SideLayout& key, const uint8_t* page, uint8_t* scratch) {
  if constexpr (Isa::kRegisterBytes != 0) {
    if (key.code_bits < 4) {
      expand_keys<Isa::kRegisterBytes>(key, page, scratch);
      return scratch;
    }
  }
  return page;
}
template <class Isa>
const uint8_t* readable_values(const SideLayout& value, const uint8_t* page, uint8_t* scratch) {
  if constexpr (Isa::kRegisterBytes != 0) {
    if (value.code_bits == 2 && has_value_blocks_only(value)) {
      expand_two_bit_values<Isa::kRegisterBytes>(value.head_dim, page, scratch);
      return scratch;
    }
  }
  return page;
}

// Weights of one page for all rows, waiting for its values.
struct PageWeights {
  const uint8_t* v_page;  // nullptr: nothing waits
  const float* rescale;
  const float* unit;
  const uint8_t* weight;
};

template <class Isa>
void add_values(const AttendBlock& b, const CodeScratch& code, const PageWeights& page) {
  const unsigned rows = row_count(b), d = b.value->head_dim;
  const bool direct = rows <= Isa::kDirectRows && has_value_blocks_only(*b.value) && b.value->code_bits != 4;
  const uint8_t* planes = readable_values<Isa>(*b.value, page.v_page, code.value_planes);
  if (!direct) Isa::unpack_values(*b.value, code.value_levels, planes, code.value);
  for (unsigned row = 0; row < rows; row += 4) {
    const unsigned block = rows - row < 4 ? rows - row : 4;
    const uint8_t* weight = page.weight + size_t{row} * 64;
    float* acc = b.acc + size_t{row} * d;
    const float *rescale = page.rescale + row, *unit = page.unit + row;
    direct ? Isa::accumulate_page(*b.value, code.value_levels, planes, weight, block, rescale, unit, acc)
           : Isa::accumulate_values(code.value, weight, block, d, rescale, unit, acc);
  }
}

// Integer scores of up to four rows with the keys of a page, as attend_codes takes them.
template <class Isa>
void dot_block(const SideLayout& key, const CodeScratch& code, const uint8_t* page, const uint8_t* planes, bool direct, const int8_t* query,
               const int8_t* sketch_query, unsigned n_rows) {
  if (direct) {
    Isa::dot_page(key, code.key_levels, planes, query, sketch_query, n_rows, code.sum, code.sum + 4 * 64);
    return;
  }
  // Bytes are levels in the order of the scratch: nothing to unpack.
  Isa::dot_keys(key.code_bits == 8 ? page : code.key, query, n_rows, key.head_dim, code.sum);
  if (key.has_residual) Isa::dot_signs(code.sign, sketch_query, n_rows, key.head_dim, code.sum + 4 * 64);
}

template <class Isa>
void sum_keys(const SideLayout& key, const uint8_t* page, const int8_t* query, const int8_t* sketch_query, unsigned n_rows,
              bool decodes_in_registers, uint8_t* scratch, int32_t* sums) {
  ScratchArena arena(scratch);
  const CodeScratch code(arena, key.head_dim, key.head_dim);
  fill_levels(*key.table, 3, kLevelOffset, code.key_levels);
  const bool direct = decodes_in_registers && n_rows <= Isa::kDirectRows && key.code_bits != 8;
  const uint8_t* planes = readable_keys<Isa>(key, page, code.key_planes);
  if (!direct && key.code_bits != 8) Isa::unpack_keys(key, code.key_levels, planes, code.key, code.sign);
  dot_block<Isa>(key, code, page, planes, direct, query, sketch_query, n_rows);
  std::memcpy(sums, code.sum, 2 * 4 * 64 * sizeof(int32_t));
}

template <class Isa>
void attend_codes(const AttendBlock& b) {
  ScratchArena arena(b.scratch);
  const SoftmaxScratch soft(arena);
  const CodeScratch code(arena, b.key->head_dim, b.value->head_dim);
  const unsigned rows = row_count(b), d_k = b.key->head_dim;
  clear_state(b);
  const ExactCells exact(b, arena);
  if (b.takes_exact) attend_exact<Isa>(b, exact, soft, HalfScratch(arena, d_k, b.value->head_dim));
  // The values of a page are added after the softmax of the next one, a long chain of dependent operations: the sums run in its
  // shadow.
  PageWeights waiting{};
  unsigned slot = 0;
  bool is_prepared = false;  // at short depth all cells may be exact
  unsigned end_of_mean = 0;  // first cell that code.mean_score is not for
  for (unsigned first = b.first_cell; first < b.end_cell; first += 64) {
    const unsigned n = b.end_cell - first < 64 ? b.end_cell - first : 64;
    if (!page_masks<Isa>(b, first, n, soft.mask)) continue;
    if (exact.touches_page(first) && !exact.leave_out(first, soft.mask)) continue;
    if (!is_prepared) prepare_codes<Isa>(b, code);
    is_prepared = true;
    if (b.key_mean != nullptr && first >= end_of_mean) {
      score_means(b, first, code.mean_score);
      end_of_mean = (first / b.mean_cells + 1) * b.mean_cells;
    }
    const uint8_t* k_page = b.k_pages + first / 64 * b.k_page_stride;
    const uint8_t* v_page = b.v_pages + first / 64 * b.v_page_stride;
    float *rescale = soft.rescale + slot * kMaxRows, *weight_unit = soft.weight_unit + slot * kMaxRows;
    uint8_t* weights = soft.weight + size_t{slot} * kMaxRows * 64;
    Isa::prefetch_page(k_page + b.k_page_stride, b.key->page_bytes);
    Isa::halves_to_floats(k_page + b.key->norm_offset, kPageTokens, soft.key_norm);
    if (b.key->has_residual) Isa::halves_to_floats(k_page + b.key->residual_offset, kPageTokens, soft.residual);
    Isa::halves_to_floats(v_page + b.value->norm_offset, kPageTokens, soft.value_norm);
    // Few rows decode in registers on the way into the products; many rows share one unpacking to scratch.
    const bool bytes = b.key->code_bits == 8, direct = rows <= Isa::kDirectRows && !bytes;
    const uint8_t* planes = readable_keys<Isa>(*b.key, k_page, code.key_planes);
    if (!direct && !bytes) Isa::unpack_keys(*b.key, code.key_levels, planes, code.key, code.sign);
    for (unsigned row = 0; row < rows; row += 4) {
      const unsigned block = rows - row < 4 ? rows - row : 4;
      const int8_t *query = code.query + size_t{row} * d_k, *sketch_query = code.sketch_query + size_t{row} * d_k;
      dot_block<Isa>(*b.key, code, k_page, planes, direct, query, sketch_query, block);
      float new_max[4];
      for (unsigned i = 0; i < block; ++i) {
        const unsigned r = row + i;
        float* score = soft.score + size_t{i} * 64;
        Isa::scale_scores(code.sum + i * 64, code.query_offset[r], code.query_factor[r], soft.key_norm, score);
        if (b.key->has_residual) {
          Isa::add_sketch(code.sum + (4 + i) * 64, code.sketch_sum[r], code.sketch_factor[r], soft.residual, score);
        }
        for (unsigned t = 0; b.key_mean != nullptr && t < 64; ++t) score[t] += code.mean_score[r];
        if (b.softcap > 0) apply_softcap(b.softcap, score);
        new_max[i] = Isa::mask_scores(mask_of_row(b, soft.mask, r), slope_of_row(b, r), b.row_max[r], score);
      }
      exp_rows<Isa>(b, row, block, new_max, soft.score, soft.score, rescale);
      for (unsigned i = 0; i < block; ++i) {
        const unsigned r = row + i;
        weight_unit[r] = Isa::quantise_weights(soft.score + size_t{i} * 64, soft.value_norm, weights + size_t{r} * 64);
      }
    }
    Isa::prefetch_page(v_page + b.v_page_stride, b.value->page_bytes);
    if (waiting.v_page != nullptr) add_values<Isa>(b, code, waiting);
    waiting = {v_page, rescale, weight_unit, weights};
    slot ^= 1;
  }
  if (waiting.v_page != nullptr) add_values<Isa>(b, code, waiting);
}

template <class Isa>
void attend(const AttendBlock& block) {
  block.key->codec == KVT_CODEC_F16 ? attend_halves<Isa>(block) : attend_codes<Isa>(block);
}

template <class Isa>
void finish_row(const SideLayout& value, float* acc, float denominator, float* out) {
  const unsigned d = value.head_dim;
  float factor = denominator != 0 ? 1.0f / denominator : 0.0f;
  if (value.codec != KVT_CODEC_F16) {
    factor *= value.table->step / static_cast<float>(d);  // step / sqrt(d) of the values, 1 / sqrt(d) of R^T
    Isa::rotate_backward(kSignsRotation, d, acc);
  }
  for (unsigned i = 0; i < d; ++i) out[i] = acc[i] * factor;
}

template <class Isa>
constexpr KernelTable make_table(const char* name) {
  return {name, Isa::encode_row, Isa::floats_to_halves, Isa::halves_to_floats, attend<Isa>, sum_keys<Isa>, finish_row<Isa>};
}

}  // namespace
}  // namespace kvt::cpu

#endif
