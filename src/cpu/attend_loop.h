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
#include <limits>
#include <numbers>

#include "cpu/attend_scratch.h"
#include "format/half.h"
#include "format/rotation_tables.h"

namespace kvt::cpu {
namespace {

struct Half {
  uint8_t bytes[2];  // fp16 in a page: no alignment
};

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

// The level at each index that nibbles yield: the code's bits m, then for a trellis z1 and z0 (format.md 4.4), from low to high.
// Entries repeat past n_levels, so that sign bits and other leftovers above an index do not matter.
inline void fill_levels(const LevelTable& table, int offset, uint8_t* levels) {
  const unsigned m_bits = table.bits - 1;
  for (unsigned i = 0; i < 64; ++i) {
    const unsigned m = i & ((1u << m_bits) - 1), z1 = i >> m_bits & 1, z0 = i >> (m_bits + 1) & 1;
    const unsigned index = table.trellis ? m << 2 | z1 << 1 | z0 : i & (table.n_levels() - 1);
    levels[i] = static_cast<uint8_t>(table.levels[index] + offset);
  }
}

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

inline unsigned row_count(const AttendBlock& b) { return b.n_queries * b.n_group; }

inline const float* query_row(const AttendBlock& b, unsigned row) {
  return reinterpret_cast<const float*>(b.q + row / b.n_group * b.q_query_stride + row % b.n_group * b.q_head_stride);
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
    for (unsigned e = 0; e < b.n_exact; ++e) {
      const uint8_t* k = b.exact_k + size_t{e} * d * 2;
      alignas(64) float exact[kMaxHeadDim];
      Isa::halves_to_floats(k, d, exact);
      float dot = 0;
      for (unsigned i = 0; i < d; ++i) dot += v[i] * exact[i];
      s.exact_score[row * KVT_MAX_EXACT + e] = score_scale * dot;
    }
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

// The accumulator holds sums of weight * level; finish_row multiplies R^T of it by step / d. So a value v counts as R v / step.
template <class Isa>
void prepare_exact_values(const AttendBlock& b, const CodeScratch& s) {
  const unsigned d = b.value->head_dim;
  for (unsigned e = 0; e < b.n_exact; ++e) {
    float* v = s.exact_value + size_t{e} * d;
    Isa::halves_to_floats(b.exact_v + size_t{e} * d * 2, d, v);
    Isa::rotate_forward(kSignsRotation, d, v);
    for (unsigned i = 0; i < d; ++i) v[i] /= b.value->table->step;
  }
}

// Additive masks of one page. Returns false if no row sees any cell of the page.
template <class Isa>
bool page_masks(const AttendBlock& b, unsigned first, unsigned n, float* mask) {
  const unsigned rows = b.mask_head_stride != 0 ? row_count(b) : b.n_queries;
  bool any = false;
  for (unsigned i = 0; i < rows; ++i) {
    float* to = mask + size_t{i} * 64;
    if (b.mask == nullptr) {
      for (unsigned t = 0; t < 64; ++t) to[t] = t < n ? 0.0f : kMinusInfinity;
      any = any || n > 0;
      continue;
    }
    const unsigned query = b.mask_head_stride != 0 ? i / b.n_group : i, head = b.mask_head_stride != 0 ? i % b.n_group : 0;
    const uint8_t* from = b.mask + query * b.mask_query_stride + head * b.mask_head_stride + size_t{first} * 2;
    any = Isa::load_mask(from, n, to) || any;
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
template <class Isa>
void exp_rows(const AttendBlock& b, unsigned row, unsigned n, const float* new_max, const float* score, float* probability,
              float* rescale) {
  for (unsigned i = 0; i < n; ++i) {
    const unsigned r = row + i;
    const float shift = new_max[i] == kMinusInfinity ? 0.0f : new_max[i];  // a row without cells so far: -inf - -inf is a NaN
    rescale[r] = Isa::exp_one(b.row_max[r] - shift);
    b.row_sum[r] = b.row_sum[r] * rescale[r] + Isa::exp_scores(score + size_t{i} * 64, shift, probability + size_t{i} * 64);
    b.row_max[r] = new_max[i];
  }
}

inline void clear_state(const AttendBlock& b) {
  for (unsigned row = 0; row < row_count(b); ++row) {
    b.row_max[row] = kMinusInfinity;
    b.row_sum[row] = 0;
  }
  std::memset(b.acc, 0, size_t{row_count(b)} * b.value->head_dim * sizeof(float));
}

inline void add_exact_values(const AttendBlock& b, const CodeScratch& s, unsigned row) {
  const unsigned d = b.value->head_dim;
  float* acc = b.acc + size_t{row} * d;
  for (unsigned e = 0; e < b.n_exact; ++e) {
    const float p = s.exact_probability[row * KVT_MAX_EXACT + e];
    if (p == 0.0f) continue;  // a removed cell, whatever its value
    for (unsigned i = 0; i < d; ++i) acc[i] += p * s.exact_value[size_t{e} * d + i];
  }
}

// Weights of one page for all rows, waiting for its values.
struct PageWeights {
  const uint8_t* v_page;  // nullptr: nothing waits
  const float* rescale;
  const float* unit;
  const uint8_t* weight;
  bool has_exact;
};

template <class Isa>
void add_values(const AttendBlock& b, const CodeScratch& code, const PageWeights& page) {
  const unsigned rows = row_count(b), d = b.value->head_dim;
  const bool direct = rows <= Isa::kDirectRows && has_value_blocks_only(*b.value);
  if (!direct) Isa::unpack_values(*b.value, code.value_levels, page.v_page, code.value);
  for (unsigned row = 0; row < rows; row += 4) {
    const unsigned block = rows - row < 4 ? rows - row : 4;
    const uint8_t* weight = page.weight + size_t{row} * 64;
    float* acc = b.acc + size_t{row} * d;
    const float *rescale = page.rescale + row, *unit = page.unit + row;
    direct ? Isa::accumulate_page(*b.value, code.value_levels, page.v_page, weight, block, rescale, unit, acc)
           : Isa::accumulate_values(code.value, weight, block, d, rescale, unit, acc);
  }
  for (unsigned row = 0; page.has_exact && row < rows; ++row) add_exact_values(b, code, row);
}

template <class Isa>
void attend_codes(const AttendBlock& b) {
  ScratchArena arena(b.scratch);
  const SoftmaxScratch soft(arena);
  const CodeScratch code(arena, b.key->head_dim, b.value->head_dim);
  const unsigned rows = row_count(b), d_k = b.key->head_dim;
  fill_levels(*b.key->table, kLevelOffset, code.key_levels);
  fill_levels(*b.value->table, 0, code.value_levels);
  prepare_code_queries<Isa>(b, code);
  prepare_exact_values<Isa>(b, code);
  clear_state(b);
  // The values of a page are added after the softmax of the next one, a long chain of dependent operations: the sums run in its
  // shadow.
  PageWeights waiting{};
  unsigned slot = 0;
  for (unsigned first = b.first_cell; first < b.end_cell; first += 64) {
    const unsigned n = b.end_cell - first < 64 ? b.end_cell - first : 64;
    if (!page_masks<Isa>(b, first, n, soft.mask)) continue;
    const uint8_t* k_page = b.k_pages + first / 64 * b.k_page_stride;
    const uint8_t* v_page = b.v_pages + first / 64 * b.v_page_stride;
    float *rescale = soft.rescale + slot * kMaxRows, *weight_unit = soft.weight_unit + slot * kMaxRows;
    uint8_t* weights = soft.weight + size_t{slot} * kMaxRows * 64;
    Isa::prefetch_page(k_page + b.k_page_stride, b.key->page_bytes);
    Isa::halves_to_floats(k_page + b.key->norm_offset, kPageTokens, soft.key_norm);
    if (b.key->has_residual) Isa::halves_to_floats(k_page + b.key->residual_offset, kPageTokens, soft.residual);
    Isa::halves_to_floats(v_page + b.value->norm_offset, kPageTokens, soft.value_norm);
    const unsigned n_exact = first == 0 ? b.n_exact : 0;
    // Few rows decode in registers on the way into the products; many rows share one unpacking to scratch.
    const bool direct = rows <= Isa::kDirectRows;
    if (!direct) Isa::unpack_keys(*b.key, code.key_levels, k_page, code.key, code.sign);
    for (unsigned row = 0; row < rows; row += 4) {
      const unsigned block = rows - row < 4 ? rows - row : 4;
      const int8_t *query = code.query + size_t{row} * d_k, *sketch_query = code.sketch_query + size_t{row} * d_k;
      if (direct) {
        Isa::dot_page(*b.key, code.key_levels, k_page, query, sketch_query, block, code.sum, code.sum + 4 * 64);
      } else {
        Isa::dot_keys(code.key, query, block, d_k, code.sum);
        if (b.key->has_residual) Isa::dot_signs(code.sign, sketch_query, block, d_k, code.sum + 4 * 64);
      }
      float new_max[4];
      for (unsigned i = 0; i < block; ++i) {
        const unsigned r = row + i;
        float* score = soft.score + size_t{i} * 64;
        Isa::scale_scores(code.sum + i * 64, code.query_offset[r], code.query_factor[r], soft.key_norm, score);
        if (b.key->has_residual) {
          Isa::add_sketch(code.sum + (4 + i) * 64, code.sketch_sum[r], code.sketch_factor[r], soft.residual, score);
        }
        if (n_exact > 0) std::memcpy(score, code.exact_score + r * KVT_MAX_EXACT, n_exact * sizeof(float));
        if (b.softcap > 0) apply_softcap(b.softcap, score);
        new_max[i] = Isa::mask_scores(mask_of_row(b, soft.mask, r), slope_of_row(b, r), b.row_max[r], score);
      }
      exp_rows<Isa>(b, row, block, new_max, soft.score, soft.score, rescale);
      for (unsigned i = 0; i < block; ++i) {
        const unsigned r = row + i;
        float* score = soft.score + size_t{i} * 64;
        if (n_exact > 0) {
          std::memcpy(code.exact_probability + r * KVT_MAX_EXACT, score, n_exact * sizeof(float));
          std::memset(score, 0, n_exact * sizeof(float));
        }
        weight_unit[r] = Isa::quantise_weights(score, soft.value_norm, weights + size_t{r} * 64);
      }
    }
    Isa::prefetch_page(v_page + b.v_page_stride, b.value->page_bytes);
    if (waiting.v_page != nullptr) add_values<Isa>(b, code, waiting);
    waiting = {v_page, rescale, weight_unit, weights, n_exact > 0};
    slot ^= 1;
  }
  if (waiting.v_page != nullptr) add_values<Isa>(b, code, waiting);
}

template <class Isa>
void attend_halves(const AttendBlock& b) {
  ScratchArena arena(b.scratch);
  const SoftmaxScratch soft(arena);
  const HalfScratch half(arena, b.key->head_dim);
  const unsigned rows = row_count(b), d_k = b.key->head_dim, d_v = b.value->head_dim;
  const float score_scale = b.softcap > 0 ? b.scale / b.softcap : b.scale;
  for (unsigned row = 0; row < rows; ++row) {
    const float* q = query_row(b, row);
    for (unsigned i = 0; i < d_k; ++i) half.query[size_t{row} * d_k + i] = q[i] * score_scale;
  }
  clear_state(b);
  for (unsigned first = b.first_cell; first < b.end_cell; first += 64) {
    const unsigned n = b.end_cell - first < 64 ? b.end_cell - first : 64;
    if (!page_masks<Isa>(b, first, n, soft.mask)) continue;
    const uint8_t* k_page = b.k_pages + first / 64 * b.k_page_stride;
    const uint8_t* v_page = b.v_pages + first / 64 * b.v_page_stride;
    // Every four query rows convert the page anew: that costs less than a second copy of it in the first-level cache.
    for (unsigned row = 0; row < rows; row += 4) {
      const unsigned block = rows - row < 4 ? rows - row : 4;
      const float* query = half.query + size_t{row} * d_k;
      Isa::dot_rows(reinterpret_cast<const Half*>(k_page), v_page - k_page, n, query, block, d_k, soft.score);
      float new_max[4];
      for (unsigned i = 0; i < block; ++i) {
        const unsigned r = row + i;
        float* score = soft.score + size_t{i} * 64;
        if (b.softcap > 0) apply_softcap(b.softcap, score);
        new_max[i] = Isa::mask_scores(mask_of_row(b, soft.mask, r), slope_of_row(b, r), b.row_max[r], score);
      }
      exp_rows<Isa>(b, row, block, new_max, soft.score, soft.probability + size_t{row} * 64, soft.rescale);
    }
    for (unsigned row = 0; row < rows; row += 4) {
      const unsigned block = rows - row < 4 ? rows - row : 4;
      const float* probability = soft.probability + size_t{row} * 64;
      float* acc = b.acc + size_t{row} * d_v;
      const ptrdiff_t ahead = k_page + b.k_page_stride - v_page;
      Isa::accumulate_rows(reinterpret_cast<const Half*>(v_page), ahead, n, probability, block, d_v, soft.rescale + row, acc);
    }
  }
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

}  // namespace
}  // namespace kvt::cpu

#endif
