// Kernels on 256-bit registers: AVX2 + FMA + F16C, and whatever Dot adds its products with. Costs are in vector instructions for
// each token and query row at head dim d, for plain AVX2.
// Included by kernels_avx2.cc and kernels_avxvnni.cc; internal linkage for the reason given in attend_loop.h. Dot has
//   pair(total, u0, s0, u1, s1)     int32 lanes + u8 x s8 products of two registers, whose int16 pair sums fit (quantise_query)
//   quad(total, u0, s0, .. u3, s3)  the same of four
//   narrow(total, u, s)             sums that are small enough to stay in int16 lanes, if it has no better ones
//   widen(total)                    such sums as int32 lanes
#ifndef KVT_CPU_KERNELS_256_H
#define KVT_CPU_KERNELS_256_H

#include <immintrin.h>

#include "cpu/attend_loop.h"
#include "cpu/encode_vector.h"
#include "cpu/unpack_plain.h"

namespace kvt::cpu {
namespace {

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline __m256i broadcast_word(const void* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return _mm256_set1_epi32(word);
}
inline float largest_lane(__m256 v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
inline float sum_lanes(__m256 v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

// exp(x) for x <= 0; 0 below -87, so -inf gives 0; NaN stays NaN. Relative error below 2.5e-7: Cody-Waite reduction, Taylor terms
// to x^6 / 720 on [-ln2/2, ln2/2].
inline __m256 exp_negative(__m256 x) {
  const __m256 in_range = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_NLT_UQ);  // also true for NaN
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.0f / 720);
  for (float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(coefficient));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  const __m256 scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  const __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  return _mm256_blendv_ps(_mm256_and_ps(scaled, in_range), x, is_nan);
}

template <class Dot>
struct Kernels256 : VectorCoder<8> {
  static constexpr unsigned kDirectRows = 2;  // 16 registers do not hold more rows beside the decoding
  static constexpr unsigned kRegisterBytes = 32;

  static void prefetch_page(const uint8_t* page, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(page + i), _MM_HINT_T0);
  }

  static void halves_to_floats(const uint8_t* from, size_t n, float* to) {  // n: a multiple of 8
    for (size_t i = 0; i < n; i += 8) {
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i))));
    }
  }

  static bool load_mask(const uint8_t* from, unsigned n, float* to) {
    const unsigned whole = n / 8 * 8;
    halves_to_floats(from, whole, to);
    for (unsigned t = whole; t < 64; ++t) {
      to[t] = t < n ? half_to_float(static_cast<uint16_t>(from[2 * t] | from[2 * t + 1] << 8)) : kMinusInfinity;
    }
    __m256 any = _mm256_setzero_ps();
    for (unsigned t = 0; t < 64; t += 8) {
      any = _mm256_or_ps(any, _mm256_cmp_ps(_mm256_loadu_ps(to + t), _mm256_set1_ps(kMinusInfinity), _CMP_NEQ_UQ));
    }
    return _mm256_movemask_ps(any) != 0;
  }

  static __m256i load_table(const uint8_t* levels) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)));
  }

  // Levels of half a key line, 8 tokens: dims 8u..8u+3 (low) and 8u+4..8u+7 (high); the raw nibbles beside them.
  struct KeyLevels {
    __m256i low, high, low_nibble, high_nibble;
  };
  struct KeyTables {
    __m256i level, level_z0;  // the second for z0 = 1, trellis only
    explicit KeyTables(const uint8_t* levels) : level(load_table(levels)), level_z0(load_table(levels + 16)) {}
  };
  // Calls visit(u, KeyLevels) for each line u of the half tile at `tile`; trellis lines come chain by chain.
  template <KeyKind kKind, class Visit>
  [[gnu::always_inline]] static void for_each_key_line(const KeyTables& tables, const uint8_t* tile, unsigned n_lines, Visit visit) {
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    auto look_up = [&](__m256i x) {
      KeyLevels levels;
      levels.low_nibble = _mm256_and_si256(x, nibble);
      levels.high_nibble = _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble);
      levels.low = _mm256_shuffle_epi8(tables.level, levels.low_nibble);
      levels.high = _mm256_shuffle_epi8(tables.level, levels.high_nibble);
      return levels;
    };
    if constexpr (kKind != KeyKind::kTrellis) {
      for (unsigned u = 0; u < n_lines; ++u) visit(u, look_up(load(tile + u * 64)));
      return;
    }
    auto rotate = [](__m256i x) { return _mm256_or_si256(_mm256_slli_epi32(x, 4), _mm256_srli_epi32(x, 28)); };
    for (unsigned c = 0; c < 4; ++c) {
      const unsigned last = (n_lines - 1 - c) / 4 * 4 + c;  // line of the chain; c + 4 at least
      const uint8_t* line = tile + last * 64;
      __m256i before[3];  // the lines 1, 2 and 3 back: before the first stand the last ones, rotated by a nibble (format.md 4.4)
      before[0] = rotate(load(line));
      before[1] = rotate(load(line - 256));
      before[2] = rotate(last >= 8 ? load(line - 512) : before[0]);
      for (unsigned u = c; u < n_lines; u += 4) {
        const __m256i x = load(tile + u * 64), p2 = before[1];
        // Bit 3 of each nibble: t -> z1 = t ^ t[-1] ^ t[-3]. z0 = t[-2] chooses the table: bit 7 of each byte selects.
        const __m256i flips = _mm256_and_si256(_mm256_xor_si256(before[0], before[2]), _mm256_set1_epi8(static_cast<char>(0x88)));
        KeyLevels levels = look_up(_mm256_xor_si256(x, flips));
        levels.low = _mm256_blendv_epi8(levels.low, _mm256_shuffle_epi8(tables.level_z0, levels.low_nibble), _mm256_slli_epi16(p2, 4));
        levels.high = _mm256_blendv_epi8(levels.high, _mm256_shuffle_epi8(tables.level_z0, levels.high_nibble), p2);
        before[2] = p2;
        before[1] = before[0];
        before[0] = x;
        visit(u, levels);
      }
    }
  }

  template <KeyKind kKind>
  static void unpack_keys_kind(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, uint8_t* key, uint8_t* sign) {
    const KeyTables tables(levels);
    const __m256i one = _mm256_set1_epi8(1);
    const unsigned n_lines = layout.head_dim / 8;
    for (unsigned half_tile = 0; half_tile < 8; ++half_tile) {
      const size_t tile = half_tile / 2, half = half_tile % 2 * 32;
      for_each_key_line<kKind>(tables, page + tile * n_lines * 64 + half, n_lines, [&](unsigned u, const KeyLevels& line) __attribute__((always_inline)) {
        const size_t to = (tile * n_lines + u) * 128 + half;
        store(key + to, line.low);
        store(key + to + 64, line.high);
        if constexpr (kKind == KeyKind::kSigns) {
          store(sign + to, _mm256_and_si256(_mm256_srli_epi16(line.low_nibble, 3), one));
          store(sign + to + 64, _mm256_and_si256(_mm256_srli_epi16(line.high_nibble, 3), one));
        }
      });
    }
  }
  static void unpack_keys(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, uint8_t* key, uint8_t* sign) {
    layout.table->trellis ? unpack_keys_kind<KeyKind::kTrellis>(layout, levels, page, key, sign)
    : layout.has_residual ? unpack_keys_kind<KeyKind::kSigns>(layout, levels, page, key, sign)
                          : unpack_keys_kind<KeyKind::kScalar>(layout, levels, page, key, sign);
  }

  // Four u8 x s8 products of 16 dims add up in int16 without saturation (quantise_query), then widen: 9 d / 128 a row.
  template <unsigned R>
  static void dot_keys_rows(const uint8_t* key, const int8_t* query, unsigned d, int32_t* sum) {
    for (unsigned half_tile = 0; half_tile < 8; ++half_tile) {
      const uint8_t* k = key + size_t{half_tile / 2} * 16 * d + half_tile % 2 * 32;
      __m256i total[R] = {};
      for (unsigned i = 0; i < d; i += 16, k += 256) {
        const __m256i k0 = load(k), k1 = load(k + 64), k2 = load(k + 128), k3 = load(k + 192);
        for (unsigned r = 0; r < R; ++r) {
          const int8_t* q = query + size_t{r} * d + i;
          total[r] = Dot::quad(total[r], k0, broadcast_word(q), k1, broadcast_word(q + 4), k2, broadcast_word(q + 8), k3,
                               broadcast_word(q + 12));
        }
      }
      for (unsigned r = 0; r < R; ++r) store(sum + r * 64 + half_tile * 8, total[r]);
    }
  }
  // Signs are 0 or 1: |sum in an int16 lane| <= d / 2 * 127 = 16256 at d = 256, so nothing widens before the end.
  template <unsigned R>
  static void dot_signs_rows(const uint8_t* sign, const int8_t* query, unsigned d, int32_t* sum) {
    for (unsigned half_tile = 0; half_tile < 8; ++half_tile) {
      const uint8_t* s = sign + size_t{half_tile / 2} * 16 * d + half_tile % 2 * 32;
      __m256i total[R] = {};
      for (unsigned i = 0; i < d; i += 4, s += 64) {
        const __m256i x = load(s);
        for (unsigned r = 0; r < R; ++r) {
          total[r] = Dot::narrow(total[r], x, broadcast_word(query + size_t{r} * d + i));
        }
      }
      for (unsigned r = 0; r < R; ++r) store(sum + r * 64 + half_tile * 8, Dot::widen(total[r]));
    }
  }
  static void dot_keys(const uint8_t* key, const int8_t* query, unsigned n_rows, unsigned d, int32_t* sum) {
    with_rows<4>(n_rows, [&]<unsigned R>() { dot_keys_rows<R>(key, query, d, sum); });
  }
  static void dot_signs(const uint8_t* sign, const int8_t* query, unsigned n_rows, unsigned d, int32_t* sum) {
    with_rows<4>(n_rows, [&]<unsigned R>() { dot_signs_rows<R>(sign, query, d, sum); });
  }

  // The same sums straight from the page. Each line widens at once, since trellis lines that share an int16 lane's bound do not come
  // together. Signs enter as 8 in each byte: an int16 lane would overflow past 64 dims (64 / 2 * 8 * 127 = 32512), so it widens too.
  template <unsigned R, KeyKind kKind>
  static void dot_page_rows(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const int8_t* query, const int8_t* sketch_query, int32_t* sum,
                            int32_t* sign_sum) {
    constexpr bool kSigns = kKind == KeyKind::kSigns;
    const unsigned d = layout.head_dim, n_lines = d / 8;
    const KeyTables tables(levels);
    const __m256i sign = _mm256_set1_epi8(0x08);
    for (unsigned half_tile = 0; half_tile < 8; ++half_tile) {
      const uint8_t* tile = page + size_t{half_tile / 2} * n_lines * 64 + half_tile % 2 * 32;
      __m256i total[R] = {}, sign_total[R] = {}, narrow_signs[R] = {};
      for_each_key_line<kKind>(tables, tile, n_lines, [&](unsigned u, const KeyLevels& line) __attribute__((always_inline)) {
        for (unsigned r = 0; r < R; ++r) {
          const int8_t* q = query + size_t{r} * d + 8 * u;
          total[r] = Dot::pair(total[r], line.low, broadcast_word(q), line.high, broadcast_word(q + 4));
          if constexpr (kSigns) {
            const int8_t* s = sketch_query + size_t{r} * d + 8 * u;
            narrow_signs[r] = Dot::narrow(narrow_signs[r], _mm256_and_si256(line.low_nibble, sign), broadcast_word(s));
            narrow_signs[r] = Dot::narrow(narrow_signs[r], _mm256_and_si256(line.high_nibble, sign), broadcast_word(s + 4));
            if (u % 8 == 7 || u + 1 == n_lines) {
              sign_total[r] = _mm256_add_epi32(sign_total[r], Dot::widen(narrow_signs[r]));
              narrow_signs[r] = _mm256_setzero_si256();
            }
          }
        }
      });
      for (unsigned r = 0; r < R; ++r) {
        store(sum + r * 64 + half_tile * 8, total[r]);
        if constexpr (kSigns) store(sign_sum + r * 64 + half_tile * 8, _mm256_srai_epi32(sign_total[r], 3));
      }
    }
  }
  template <KeyKind kKind>
  static void dot_page_kind(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const int8_t* query, const int8_t* sketch_query,
                            unsigned n_rows, int32_t* sum, int32_t* sign_sum) {
    with_rows<kDirectRows>(n_rows, [&]<unsigned R>() { dot_page_rows<R, kKind>(layout, levels, page, query, sketch_query, sum, sign_sum); });
  }
  static void dot_page(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const int8_t* query, const int8_t* sketch_query, unsigned n_rows,
                       int32_t* sum, int32_t* sign_sum) {
    layout.table->trellis ? dot_page_kind<KeyKind::kTrellis>(layout, levels, page, query, sketch_query, n_rows, sum, sign_sum)
    : layout.has_residual ? dot_page_kind<KeyKind::kSigns>(layout, levels, page, query, sketch_query, n_rows, sum, sign_sum)
                          : dot_page_kind<KeyKind::kScalar>(layout, levels, page, query, sketch_query, n_rows, sum, sign_sum);
  }

  static void scale_scores(const int32_t* sum, int32_t offset, float factor, const float* norm, float* score) {
    const __m256 f = _mm256_set1_ps(factor);
    for (unsigned t = 0; t < 64; t += 8) {
      const __m256 x = _mm256_cvtepi32_ps(_mm256_sub_epi32(load(sum + t), _mm256_set1_epi32(offset)));
      _mm256_storeu_ps(score + t, _mm256_mul_ps(_mm256_mul_ps(f, _mm256_loadu_ps(norm + t)), x));
    }
  }
  static void add_sketch(const int32_t* sum, int32_t total, float factor, const float* residual, float* score) {
    const __m256 f = _mm256_set1_ps(factor);
    for (unsigned t = 0; t < 64; t += 8) {
      const __m256 x = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_set1_epi32(total), _mm256_slli_epi32(load(sum + t), 1)));
      const __m256 scaled = _mm256_mul_ps(f, _mm256_loadu_ps(residual + t));
      _mm256_storeu_ps(score + t, _mm256_fmadd_ps(scaled, x, _mm256_loadu_ps(score + t)));
    }
  }
  static float mask_scores(const float* mask, float slope, float row_max, float* score) {
    const __m256 none = _mm256_set1_ps(kMinusInfinity);
    __m256 largest = _mm256_set1_ps(row_max);
    for (unsigned t = 0; t < 64; t += 8) {
      const __m256 m = _mm256_loadu_ps(mask + t);
      const __m256 removed = _mm256_cmp_ps(m, none, _CMP_EQ_OQ);
      const __m256 s = _mm256_fmadd_ps(_mm256_set1_ps(slope), m, _mm256_loadu_ps(score + t));
      const __m256 masked = _mm256_blendv_ps(s, none, removed);
      largest = _mm256_max_ps(masked, largest);  // a NaN score is passed over
      _mm256_storeu_ps(score + t, masked);
    }
    return largest_lane(largest);
  }
  static float exp_one(float x) { return _mm256_cvtss_f32(exp_negative(_mm256_set1_ps(x))); }
  static float exp_scores(const float* score, float shift, float* probability) {
    __m256 total = _mm256_setzero_ps();
    for (unsigned t = 0; t < 64; t += 8) {
      const __m256 p = exp_negative(_mm256_sub_ps(_mm256_loadu_ps(score + t), _mm256_set1_ps(shift)));
      _mm256_storeu_ps(probability + t, p);
      total = _mm256_add_ps(total, p);
    }
    return sum_lanes(total);
  }

  static float quantise_weights(const float* probability, const float* norm, uint8_t* weight) {
    __m256 product[8], largest = _mm256_setzero_ps(), poison = _mm256_setzero_ps();
    for (unsigned i = 0; i < 8; ++i) {
      const __m256 p = _mm256_loadu_ps(probability + 8 * i);
      const __m256 used = _mm256_cmp_ps(p, _mm256_setzero_ps(), _CMP_NEQ_UQ);
      product[i] = _mm256_and_ps(_mm256_mul_ps(p, _mm256_loadu_ps(norm + 8 * i)), used);
      largest = _mm256_max_ps(product[i], largest);
      poison = _mm256_fmadd_ps(product[i], _mm256_setzero_ps(), poison);
    }
    const float top = largest_lane(largest);
    const __m256 inverse = _mm256_set1_ps(top > 0 ? 127.0f / top : 0.0f);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // undoes the interleaving of the two packs
    for (unsigned i = 0; i < 2; ++i) {
      __m256i w[4];
      for (unsigned j = 0; j < 4; ++j) w[j] = _mm256_cvtps_epi32(_mm256_mul_ps(product[4 * i + j], inverse));
      const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(w[0], w[1]), _mm256_packs_epi32(w[2], w[3]));
      store(weight + 32 * i, _mm256_permutevar8x32_epi32(bytes, order));
    }
    return top / 127.0f + sum_lanes(poison);
  }

  // Bits 3 and 7 of the three lines are bits 0, 1, 2 of the fourth subgroup's codes (format.md 4.2).
  static __m256i fourth_subgroup(__m256i x0, __m256i x1, __m256i x2) {
    const __m256i low = _mm256_and_si256(_mm256_srli_epi16(x0, 3), _mm256_set1_epi8(0x11));
    const __m256i middle = _mm256_and_si256(_mm256_srli_epi16(x1, 2), _mm256_set1_epi8(0x22));
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(x2, 1), _mm256_set1_epi8(0x44));
    return _mm256_or_si256(_mm256_or_si256(low, middle), high);
  }

  // The subgroups of block h and, for k = 1, 2, 3, their words w - 1: of this block, but word 0 of each chain follows word 3 of the
  // block before.
  template <class RawBlock>
  static void words_before(const ValuePlanes& planes, unsigned h, RawBlock raw_block, __m256i* x, __m256i* before) {
    raw_block(h, x);
    __m256i last[4];
    raw_block(h == 0 ? planes.blocks - 1 : h - 1, last);
    for (unsigned k = 1; k < 4; ++k) before[k] = _mm256_alignr_epi8(x[k], last[k], 12);
  }

  // Index nibbles of the four subgroups of block h, for the half octet that `lines` points at.
  template <bool kTrellis>
  [[gnu::always_inline]] static void value_index(const ValuePlanes& planes, const uint8_t* lines, unsigned h, __m256i* index) {
    auto raw_block = [&](unsigned block, __m256i* x) __attribute__((always_inline)) {
      for (unsigned k = 0; k < 3; ++k) x[k] = load(lines + planes.line(k, block));
      x[3] = fourth_subgroup(x[0], x[1], x[2]);
    };
    if constexpr (!kTrellis) return raw_block(h, index);
    __m256i x[4], before[4];
    words_before(planes, h, raw_block, x, before);
    // Bit 2 of each nibble: t -> z1 = t ^ t[-1] ^ t[-3]; bit 3: z0 = t[-2].
    auto merge = [](__m256i at, __m256i p1, __m256i p2, __m256i p3) {
      const __m256i z1 = _mm256_and_si256(_mm256_xor_si256(p1, p3), _mm256_set1_epi8(0x44));
      const __m256i low = _mm256_and_si256(_mm256_xor_si256(at, z1), _mm256_set1_epi8(0x77));
      return _mm256_or_si256(low, _mm256_and_si256(_mm256_add_epi8(p2, p2), _mm256_set1_epi8(static_cast<char>(0x88))));
    };
    index[0] = merge(x[0], before[3], before[2], before[1]);
    index[1] = merge(x[1], x[0], before[3], before[2]);
    index[2] = merge(x[2], x[1], x[0], before[3]);
    index[3] = merge(x[3], x[2], x[1], x[0]);
  }

  template <bool kTrellis>
  static void unpack_values_kind(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, int8_t* value) {
    const ValuePlanes planes(layout.head_dim);
    const size_t quad = size_t{layout.head_dim} * 4;
    const __m256i table = load_table(levels), nibble = _mm256_set1_epi8(0x0f);
    for (size_t group = 0; group < 2; ++group) {
      int8_t* quads = value + group * 8 * quad;
      for (unsigned c = 0; c < 4; ++c) {
        for (unsigned half = 0; half < 2; ++half) {
          const uint8_t* lines = page + group * planes.group_bytes() + c * 64 + half * 32;
          auto put = [&](size_t dim, __m256i x) {  // dim: first of the 8 dims of this half line
            store(quads + c * quad + dim * 4, _mm256_shuffle_epi8(table, _mm256_and_si256(x, nibble)));
            store(quads + (4 + c) * quad + dim * 4, _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble)));
          };
          for (unsigned h = 0; h < planes.blocks; ++h) {
            __m256i index[4];
            value_index<kTrellis>(planes, lines, h, index);
            for (unsigned k = 0; k < 4; ++k) put(size_t{64} * h + 16 * k + 8 * half, index[k]);
          }
          for (unsigned j = 0; j < planes.rest; ++j) put(size_t{64} * planes.blocks + 16 * j + 8 * half, load(lines + planes.rest_line(j)));
        }
      }
    }
  }
  // Trellis codes of 4 bits, whole nibbles: z0 chooses between two tables.
  static void unpack_four_bit_values(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, int8_t* value) {
    const ValuePlanes planes(layout.head_dim, 4);
    const size_t quad = size_t{layout.head_dim} * 4;
    const __m256i table = load_table(levels), table_z0 = load_table(levels + 16), nibble = _mm256_set1_epi8(0x0f);
    auto look_up = [&](__m256i index, __m256i z0) {  // index in the low nibbles, z0 in bit 7
      index = _mm256_and_si256(index, nibble);
      return _mm256_blendv_epi8(_mm256_shuffle_epi8(table, index), _mm256_shuffle_epi8(table_z0, index), z0);
    };
    for (unsigned i = 0; i < 16; ++i) {  // groups, octets, halves
      const uint8_t* lines = page + i / 8 * planes.group_bytes() + i % 8 * 32;
      int8_t* low_quad = value + (i / 8 * 8 + i % 8 / 2) * quad + i % 2 * 32;
      for (unsigned h = 0; h < planes.blocks; ++h) {
        auto raw_block = [&](unsigned block, __m256i* x) {
          for (unsigned k = 0; k < 4; ++k) x[k] = load(lines + planes.line(k, block));
        };
        __m256i x[8], before[4];
        words_before(planes, h, raw_block, x + 4, before);
        for (unsigned k = 1; k < 4; ++k) x[k] = before[k];
        for (unsigned k = 0; k < 4; ++k) {  // one, two and three steps back are x[k + 3], x[k + 2] and x[k + 1]
          const __m256i flips = _mm256_and_si256(_mm256_xor_si256(x[k + 3], x[k + 1]), _mm256_set1_epi8(static_cast<char>(0x88)));
          const __m256i merged = _mm256_xor_si256(x[k + 4], flips);
          int8_t* to = low_quad + (size_t{64} * h + 16 * k) * 4;
          store(to, look_up(merged, _mm256_slli_epi16(x[k + 2], 4)));
          store(to + 4 * quad, look_up(_mm256_srli_epi16(merged, 4), x[k + 2]));
        }
      }
    }
  }
  static void unpack_values(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, int8_t* value) {
    if (!has_value_blocks_only(layout)) return unpack_values_plain(layout, page, value);
    if (layout.code_bits == 4) return unpack_four_bit_values(layout, levels, page, value);
    layout.table->trellis ? unpack_values_kind<true>(layout, levels, page, value) : unpack_values_kind<false>(layout, levels, page, value);
  }

  // |weight * level| of four tokens: 2 * 2 * 127 * 62 = 31496 fits int16. 10 d / 128 a row.
  template <unsigned R>
  static void accumulate_values_rows(const int8_t* value, const uint8_t* weight, unsigned d, const float* rescale, const float* unit,
                                     float* acc) {
    for (unsigned i = 0; i < d; i += 8) {
      __m256i total[R] = {};
      const int8_t* v = value + size_t{i} * 4;
      for (unsigned quad = 0; quad < 16; quad += 2, v += size_t{d} * 8) {
        const __m256i v0 = load(v), v1 = load(v + size_t{d} * 4);
        for (unsigned r = 0; r < R; ++r) {
          const uint8_t* w = weight + r * 64 + quad * 4;
          total[r] = Dot::pair(total[r], broadcast_word(w), v0, broadcast_word(w + 4), v1);
        }
      }
      for (unsigned r = 0; r < R; ++r) {
        float* a = acc + size_t{r} * d + i;
        const __m256 kept = _mm256_mul_ps(_mm256_loadu_ps(a), _mm256_set1_ps(rescale[r]));
        _mm256_storeu_ps(a, _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[r]), _mm256_set1_ps(unit[r]), kept));
      }
    }
  }
  static void accumulate_values(const int8_t* value, const uint8_t* weight, unsigned n_rows, unsigned d, const float* rescale,
                                const float* unit, float* acc) {
    with_rows<4>(n_rows, [&]<unsigned R>() { accumulate_values_rows<R>(value, weight, d, rescale, unit, acc); });
  }

  // The same sums straight from the page, S subgroups of 8 dims at a time: half lines of four subgroups, or of a rest line.
  template <unsigned R, unsigned S, class LoadLines>
  static void accumulate_lines(__m256i table, LoadLines load_lines, size_t group_bytes, const uint8_t* weight, unsigned d, unsigned first,
                               const float* rescale, const float* unit, const uint8_t* page, float* acc) {
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    __m256i total[R][S] = {};
#pragma GCC unroll 1  // gcc would unroll it, or not, as other code of the file goes, and take half as long again if it does
    for (unsigned i = 0; i < 8; ++i) {  // groups and their octets
      __m256i x[S];
      load_lines(page + i / 4 * group_bytes + i % 4 * 64, x);
      for (unsigned k = 0; k < S; ++k) {
        const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(x[k], nibble));
        const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x[k], 4), nibble));
        for (unsigned r = 0; r < R; ++r) {
          const uint8_t* w = weight + r * 64 + i / 4 * 32 + i % 4 * 4;
          total[r][k] = Dot::pair(total[r][k], broadcast_word(w), low, broadcast_word(w + 16), high);
        }
      }
    }
    for (unsigned r = 0; r < R; ++r) {
      for (unsigned k = 0; k < S; ++k) {
        float* a = acc + size_t{r} * d + first + 16 * k;
        const __m256 kept = _mm256_mul_ps(_mm256_loadu_ps(a), _mm256_set1_ps(rescale[r]));
        _mm256_storeu_ps(a, _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[r][k]), _mm256_set1_ps(unit[r]), kept));
      }
    }
  }
  template <unsigned R, bool kTrellis>
  static void accumulate_page_rows(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const uint8_t* weight, const float* rescale,
                                   const float* unit, float* acc) {
    const ValuePlanes planes(layout.head_dim);
    const __m256i table = load_table(levels);
    const unsigned d = layout.head_dim;
    for (unsigned half = 0; half < 2; ++half) {
      for (unsigned h = 0; h < planes.blocks; ++h) {
        auto block = [&](const uint8_t* lines, __m256i* x) __attribute__((always_inline)) { value_index<kTrellis>(planes, lines + 32 * half, h, x); };
        accumulate_lines<R, 4>(table, block, planes.group_bytes(), weight, d, 64 * h + 8 * half, rescale, unit, page, acc);
      }
      for (unsigned j = 0; j < planes.rest; ++j) {
        auto rest = [&](const uint8_t* lines, __m256i* x) { x[0] = load(lines + planes.rest_line(j) + 32 * half); };
        accumulate_lines<R, 1>(table, rest, planes.group_bytes(), weight, d, 64 * planes.blocks + 16 * j + 8 * half, rescale, unit, page, acc);
      }
    }
  }
  template <bool kTrellis>
  static void accumulate_page_kind(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const uint8_t* weight, unsigned n_rows,
                                   const float* rescale, const float* unit, float* acc) {
    with_rows<kDirectRows>(n_rows, [&]<unsigned R>() { accumulate_page_rows<R, kTrellis>(layout, levels, page, weight, rescale, unit, acc); });
  }
  static void accumulate_page(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const uint8_t* weight, unsigned n_rows, const float* rescale,
                              const float* unit, float* acc) {
    layout.table->trellis ? accumulate_page_kind<true>(layout, levels, page, weight, n_rows, rescale, unit, acc)
                          : accumulate_page_kind<false>(layout, levels, page, weight, n_rows, rescale, unit, acc);
  }

  static __m256 load_row(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

  // While rows come straight from a page, the page `ahead` bytes on, the next to be read, is fetched line by line: memory then keeps
  // pace with the sums.
  static void prefetch_ahead(const Half* p, ptrdiff_t ahead) { _mm_prefetch(reinterpret_cast<const char*>(p) + ahead, _MM_HINT_T0); }

  template <unsigned R>
  static void dot_rows_block(const Half* key, ptrdiff_t ahead, unsigned n, const float* query, unsigned d, float* score) {
    constexpr unsigned kTokens = R == 1 ? 8 : R == 2 ? 4 : 2;  // together: enough sums to hide the latency of the multiply-add
    for (unsigned t = 0; t < 64; t += kTokens) {
      __m256 total[R][kTokens] = {};
      const Half* row[kTokens];
      for (unsigned j = 0; j < kTokens; ++j) row[j] = key + size_t{t + j < n ? t + j : t} * d;
      auto step = [&](unsigned i) {
        __m256 k[kTokens];
        for (unsigned j = 0; j < kTokens; ++j) k[j] = load_row(row[j] + i);
        for (unsigned r = 0; r < R; ++r) {
          const __m256 q = _mm256_loadu_ps(query + size_t{r} * d + i);
          for (unsigned j = 0; j < kTokens; ++j) total[r][j] = _mm256_fmadd_ps(k[j], q, total[r][j]);
        }
      };
      for (unsigned i = 0; t < n && i < d; i += 16) {
        // Half a line of each row is read: the rows' lines in the order of their addresses, which memory serves best.
        for (unsigned j = 0; j < kTokens; j += 2) prefetch_ahead(key + size_t{t} * d + kTokens * i + 16 * j, ahead);
        step(i);
        step(i + 8);
      }
      for (unsigned r = 0; r < R; ++r) {
        for (unsigned j = 0; j < kTokens; ++j) score[r * 64 + t + j] = sum_lanes(total[r][j]);
      }
    }
  }
  static void dot_rows(const Half* key, ptrdiff_t ahead, unsigned n, const float* query, unsigned n_rows, unsigned d, float* score) {
    with_rows<4>(n_rows, [&]<unsigned R>() { dot_rows_block<R>(key, ahead, n, query, d, score); });
  }

  // Tokens: rows are read from memory whole, not by parts of all rows of a page.
  static constexpr unsigned kRun = 16;
  // R rows x C registers: enough sums side by side to hide the latency of the multiply-add.
  template <unsigned R, unsigned C>
  static void accumulate_rows_block(const Half* value, ptrdiff_t ahead, unsigned begin, unsigned end, const float* probability, unsigned d, unsigned first,
                                    const float* rescale, float* acc) {
    __m256 total[R][C];
    for (unsigned r = 0; r < R; ++r) {
      for (unsigned j = 0; j < C; ++j) {
        const __m256 before = _mm256_loadu_ps(acc + size_t{r} * d + first + 8 * j);
        total[r][j] = begin == 0 ? _mm256_mul_ps(before, _mm256_set1_ps(rescale[r])) : before;
      }
    }
    for (unsigned t = begin; t < end; ++t) {
      const Half* row = value + size_t{t} * d + first;
      const Half* line = value + size_t{begin} * d + first * kRun + (t - begin) * 8 * C;  // in the order of addresses, as above
      for (unsigned j = 0; j < C; j += 4) prefetch_ahead(line + 8 * j, ahead);
      __m256 v[C];
      for (unsigned j = 0; j < C; ++j) v[j] = load_row(row + 8 * j);
      for (unsigned r = 0; r < R; ++r) {
        const float p = probability[r * 64 + t];
        if (p == 0.0f) continue;  // values of removed cells must not leak, whatever they are
        for (unsigned j = 0; j < C; ++j) total[r][j] = _mm256_fmadd_ps(v[j], _mm256_set1_ps(p), total[r][j]);
      }
    }
    for (unsigned r = 0; r < R; ++r) {
      for (unsigned j = 0; j < C; ++j) _mm256_storeu_ps(acc + size_t{r} * d + first + 8 * j, total[r][j]);
    }
  }
  template <unsigned R>
  static void accumulate_rows_all(const Half* value, ptrdiff_t ahead, unsigned n, const float* probability, unsigned d, const float* rescale, float* acc) {
    constexpr unsigned kTogether = R == 1 ? 8 : R == 2 ? 4 : 2;
    for (unsigned t = 0; t < n; t += kRun) {
      const unsigned end = n - t < kRun ? n : t + kRun;
      unsigned i = 0;
      for (; i + 8 * kTogether <= d; i += 8 * kTogether) accumulate_rows_block<R, kTogether>(value, ahead, t, end, probability, d, i, rescale, acc);
      for (; i < d; i += 16) accumulate_rows_block<R, 2>(value, ahead, t, end, probability, d, i, rescale, acc);
    }
  }
  static void accumulate_rows(const Half* value, ptrdiff_t ahead, unsigned n, const float* probability, unsigned n_rows, unsigned d,
                              const float* rescale, float* acc) {
    with_rows<4>(n_rows, [&]<unsigned R>() { accumulate_rows_all<R>(value, ahead, n, probability, d, rescale, acc); });
  }
};

}  // namespace
}  // namespace kvt::cpu

#endif
