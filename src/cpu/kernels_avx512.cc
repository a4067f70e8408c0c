// AVX-512 with VNNI and VBMI: Ice Lake and Sapphire Rapids servers, Zen 4 and later.
// A line of 64 bytes is one register: 16 tokens x 4 dims of keys, 16 dims x 4 tokens of values, and vpdpbusd adds its products to
// int32 lanes. vpermb ignores the upper two index bits, so a 16-entry table stored four times needs no masks.
#include <immintrin.h>

#include "cpu/attend_loop.h"
#include "cpu/encode_vector.h"
#include "cpu/unpack_plain.h"

namespace kvt::cpu {
namespace {

inline __m512i load(const void* p) { return _mm512_loadu_si512(p); }
inline void store(void* p, __m512i v) { _mm512_storeu_si512(p, v); }
inline __m512i broadcast_word(const void* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return _mm512_set1_epi32(word);
}

// exp(x) for x <= 0; exactly 0 for -inf; NaN stays NaN. The terms are those of kernels_avx2.cc; vscalefps handles the range.
inline __m512 exp_negative(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720);
  for (float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficient));
  const __mmask16 too_small = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);  // where r may be inf - inf
  return _mm512_mask_blend_ps(too_small, _mm512_scalef_ps(p, n), _mm512_setzero_ps());
}

struct Avx512 : VectorCoder<16> {
  static constexpr unsigned kDirectRows = 4;
  static constexpr unsigned kRegisterBytes = 64;

  static void prefetch_page(const uint8_t* page, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(page + i), _MM_HINT_T0);
  }

  static void halves_to_floats(const uint8_t* from, size_t n, float* to) {  // n: a multiple of 16
    for (size_t i = 0; i < n; i += 16) {
      _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 2 * i))));
    }
  }

  static bool load_mask(const uint8_t* from, unsigned n, float* to) {
    const __m512 none = _mm512_set1_ps(kMinusInfinity);
    __mmask16 any = 0;
    for (unsigned t = 0; t < 64; t += 16) {
      const unsigned left = n > t ? (n - t < 16 ? n - t : 16) : 0;
      const auto lanes = static_cast<__mmask16>((1u << left) - 1);
      const __m512 m = _mm512_mask_cvtph_ps(none, lanes, _mm256_maskz_loadu_epi16(lanes, from + 2 * t));
      any = static_cast<__mmask16>(any | _mm512_cmp_ps_mask(m, none, _CMP_NEQ_UQ));
      _mm512_storeu_ps(to + t, m);
    }
    return any != 0;
  }

  static __m512i select(__m512i mask, __m512i a, __m512i b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xca); }

  // The two index vectors of a key line: dims 8u..8u+3 (low) and 8u+4..8u+7 (high) of 16 tokens.
  struct KeyIndex {
    __m512i low, high;
  };
  // Calls visit(u, KeyIndex[T]) for each line u of T consecutive tiles; trellis lines come chain by chain.
  template <KeyKind kKind, unsigned T, class Visit>
  [[gnu::always_inline]] static void for_each_key_line(const uint8_t* tiles, unsigned n_lines, Visit visit) {
    const size_t tile_bytes = size_t{n_lines} * 64;
    KeyIndex index[T];
    if constexpr (kKind != KeyKind::kTrellis) {
      for (unsigned u = 0; u < n_lines; ++u) {
        for (unsigned j = 0; j < T; ++j) {
          const __m512i x = load(tiles + j * tile_bytes + u * 64);
          index[j] = {x, _mm512_srli_epi16(x, 4)};
        }
        visit(u, index);
      }
      return;
    }
    const __m512i trellis_bit = _mm512_set1_epi8(static_cast<char>(0x88)), nibble = _mm512_set1_epi8(0x0f);
    for (unsigned c = 0; c < 4; ++c) {
      const unsigned last = (n_lines - 1 - c) / 4 * 4 + c;  // line of the chain; c + 4 at least
      __m512i before[3][T];  // the lines 1, 2 and 3 back: before the first stand the last ones, rotated by a nibble (format.md 4.4)
      for (unsigned j = 0; j < T; ++j) {
        const uint8_t* line = tiles + j * tile_bytes + last * 64;
        before[0][j] = _mm512_rol_epi32(load(line), 4);
        before[1][j] = _mm512_rol_epi32(load(line - 256), 4);
        before[2][j] = _mm512_rol_epi32(last >= 8 ? load(line - 512) : before[0][j], 4);
      }
      for (unsigned u = c; u < n_lines; u += 4) {
        for (unsigned j = 0; j < T; ++j) {
          const __m512i x = load(tiles + j * tile_bytes + u * 64), p2 = before[1][j];
          // Bit 3 of each nibble: t -> z1 = t ^ t[-1] ^ t[-3]; bit 4 of the indices: z0 = t[-2].
          const __m512i merged = _mm512_xor_si512(x, _mm512_ternarylogic_epi32(before[0][j], before[2][j], trellis_bit, 0x28));
          index[j] = {select(nibble, merged, _mm512_add_epi8(p2, p2)),
                      select(nibble, _mm512_srli_epi16(merged, 4), _mm512_srli_epi16(p2, 3))};
          before[2][j] = p2;
          before[1][j] = before[0][j];
          before[0][j] = x;
        }
        visit(u, index);
      }
    }
  }
  template <KeyKind kKind>
  static void unpack_keys_kind(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, uint8_t* key, uint8_t* sign) {
    const __m512i table = load(levels), one = _mm512_set1_epi8(1);
    const unsigned n_lines = layout.head_dim / 8;
    for (unsigned tile = 0; tile < 4; ++tile) {
      for_each_key_line<kKind, 1>(page + size_t{tile} * n_lines * 64, n_lines, [&](unsigned u, const KeyIndex* index) __attribute__((always_inline)) {
        const size_t to = (size_t{tile} * n_lines + u) * 128;
        store(key + to, _mm512_permutexvar_epi8(index->low, table));
        store(key + to + 64, _mm512_permutexvar_epi8(index->high, table));
        if constexpr (kKind == KeyKind::kSigns) {
          store(sign + to, _mm512_and_si512(_mm512_srli_epi16(index->low, 3), one));
          store(sign + to + 64, _mm512_and_si512(_mm512_srli_epi16(index->low, 7), one));
        }
      });
    }
  }
  static void unpack_keys(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, uint8_t* key, uint8_t* sign) {
    layout.table->trellis    ? unpack_keys_kind<KeyKind::kTrellis>(layout, levels, page, key, sign)
    : layout.has_residual    ? unpack_keys_kind<KeyKind::kSigns>(layout, levels, page, key, sign)
                             : unpack_keys_kind<KeyKind::kScalar>(layout, levels, page, key, sign);
  }

  // R rows x T tiles of 16 tokens: R * T accumulators hide the latency of vpdpbusd. 2 d / 128 a row and token.
  template <unsigned R, unsigned T>
  static void dot_block(const uint8_t* key, const int8_t* query, unsigned d, int32_t* sum) {
    for (unsigned tile = 0; tile < 4; tile += T) {
      const uint8_t* k = key + size_t{tile} * 16 * d;
      __m512i total[R][T] = {};
      for (unsigned i = 0; i < d; i += 4, k += 64) {
        __m512i x[T];
        for (unsigned j = 0; j < T; ++j) x[j] = load(k + size_t{j} * 16 * d);
        for (unsigned r = 0; r < R; ++r) {
          const __m512i q = broadcast_word(query + size_t{r} * d + i);
          for (unsigned j = 0; j < T; ++j) total[r][j] = _mm512_dpbusd_epi32(total[r][j], x[j], q);
        }
      }
      for (unsigned r = 0; r < R; ++r) {
        for (unsigned j = 0; j < T; ++j) store(sum + r * 64 + (tile + j) * 16, total[r][j]);
      }
    }
  }
  static void dot_keys(const uint8_t* key, const int8_t* query, unsigned n_rows, unsigned d, int32_t* sum) {
    with_rows<4>(n_rows, [&]<unsigned R>() { dot_block<R, 4>(key, query, d, sum); });
  }
  static void dot_signs(const uint8_t* sign, const int8_t* query, unsigned n_rows, unsigned d, int32_t* sum) {
    dot_keys(sign, query, n_rows, d, sum);
  }

  // The same sums straight from the page. Signs stay where they are in the nibbles, 8 each, and are shifted down at the end.
  // Each line of 16 tokens x 8 dims: 1 shift, 2 look-ups, 2 products a row; with signs 2 ands and 2 products a row more.
  template <unsigned R, unsigned T, KeyKind kKind>
  static void dot_page_block(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const int8_t* query, const int8_t* sketch_query, int32_t* sum,
                             int32_t* sign_sum) {
    constexpr bool kSigns = kKind == KeyKind::kSigns;
    const unsigned d = layout.head_dim, n_lines = d / 8;
    const __m512i table = load(levels);
    const __m512i sign = _mm512_set1_epi8(0x08);
    for (unsigned tile = 0; tile < 4; tile += T) {
      __m512i total[R][T] = {}, sign_total[R][T] = {};
      for_each_key_line<kKind, T>(page + size_t{tile} * n_lines * 64, n_lines, [&](unsigned u, const KeyIndex* index) __attribute__((always_inline)) {
        for (unsigned j = 0; j < T; ++j) {
          const __m512i low = _mm512_permutexvar_epi8(index[j].low, table), high = _mm512_permutexvar_epi8(index[j].high, table);
          for (unsigned r = 0; r < R; ++r) {
            const int8_t* q = query + size_t{r} * d + 8 * u;
            total[r][j] = _mm512_dpbusd_epi32(total[r][j], low, broadcast_word(q));
            total[r][j] = _mm512_dpbusd_epi32(total[r][j], high, broadcast_word(q + 4));
            if constexpr (kSigns) {
              const int8_t* s = sketch_query + size_t{r} * d + 8 * u;
              sign_total[r][j] = _mm512_dpbusd_epi32(sign_total[r][j], _mm512_and_si512(index[j].low, sign), broadcast_word(s));
              sign_total[r][j] = _mm512_dpbusd_epi32(sign_total[r][j], _mm512_and_si512(index[j].high, sign), broadcast_word(s + 4));
            }
          }
        }
      });
      for (unsigned r = 0; r < R; ++r) {
        for (unsigned j = 0; j < T; ++j) {
          const size_t to = r * 64 + (tile + j) * 16;
          store(sum + to, total[r][j]);
          if constexpr (kSigns) {
            store(sign_sum + to, _mm512_srai_epi32(sign_total[r][j], 3));
          }
        }
      }
    }
  }
  template <KeyKind kKind>
  static void dot_page_rows(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const int8_t* query, const int8_t* sketch_query,
                            unsigned n_rows, int32_t* sum, int32_t* sign_sum) {
    with_rows<4>(n_rows, [&]<unsigned R>() { dot_page_block<R, R == 1 ? 4 : 2, kKind>(layout, levels, page, query, sketch_query, sum, sign_sum); });
  }
  static void dot_page(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const int8_t* query, const int8_t* sketch_query, unsigned n_rows,
                       int32_t* sum, int32_t* sign_sum) {
    layout.table->trellis ? dot_page_rows<KeyKind::kTrellis>(layout, levels, page, query, sketch_query, n_rows, sum, sign_sum)
    : layout.has_residual ? dot_page_rows<KeyKind::kSigns>(layout, levels, page, query, sketch_query, n_rows, sum, sign_sum)
                          : dot_page_rows<KeyKind::kScalar>(layout, levels, page, query, sketch_query, n_rows, sum, sign_sum);
  }

  static void scale_scores(const int32_t* sum, int32_t offset, float factor, const float* norm, float* score) {
    const __m512 f = _mm512_set1_ps(factor);
    for (unsigned t = 0; t < 64; t += 16) {
      const __m512 x = _mm512_cvtepi32_ps(_mm512_sub_epi32(load(sum + t), _mm512_set1_epi32(offset)));
      _mm512_storeu_ps(score + t, _mm512_mul_ps(_mm512_mul_ps(f, _mm512_loadu_ps(norm + t)), x));
    }
  }
  static void add_sketch(const int32_t* sum, int32_t total, float factor, const float* residual, float* score) {
    const __m512 f = _mm512_set1_ps(factor);
    for (unsigned t = 0; t < 64; t += 16) {
      const __m512 x = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_set1_epi32(total), _mm512_slli_epi32(load(sum + t), 1)));
      const __m512 scaled = _mm512_mul_ps(f, _mm512_loadu_ps(residual + t));
      _mm512_storeu_ps(score + t, _mm512_fmadd_ps(scaled, x, _mm512_loadu_ps(score + t)));
    }
  }
  static float mask_scores(const float* mask, float slope, float row_max, float* score) {
    const __m512 none = _mm512_set1_ps(kMinusInfinity);
    __m512 largest = _mm512_set1_ps(row_max);
    for (unsigned t = 0; t < 64; t += 16) {
      const __m512 m = _mm512_loadu_ps(mask + t);
      const __mmask16 removed = _mm512_cmp_ps_mask(m, none, _CMP_EQ_OQ);
      const __m512 s = _mm512_fmadd_ps(_mm512_set1_ps(slope), m, _mm512_loadu_ps(score + t));
      const __m512 masked = _mm512_mask_blend_ps(removed, s, none);
      largest = _mm512_max_ps(masked, largest);  // a NaN score is passed over
      _mm512_storeu_ps(score + t, masked);
    }
    return _mm512_reduce_max_ps(largest);
  }
  static float exp_one(float x) { return _mm512_cvtss_f32(exp_negative(_mm512_set1_ps(x))); }
  static float exp_scores(const float* score, float shift, float* probability) {
    __m512 total = _mm512_setzero_ps();
    for (unsigned t = 0; t < 64; t += 16) {
      const __m512 p = exp_negative(_mm512_sub_ps(_mm512_loadu_ps(score + t), _mm512_set1_ps(shift)));
      _mm512_storeu_ps(probability + t, p);
      total = _mm512_add_ps(total, p);
    }
    return _mm512_reduce_add_ps(total);
  }

  static float quantise_weights(const float* probability, const float* norm, uint8_t* weight) {
    __m512 product[4], largest = _mm512_setzero_ps(), poison = _mm512_setzero_ps();
    for (unsigned i = 0; i < 4; ++i) {
      const __m512 p = _mm512_loadu_ps(probability + 16 * i);
      const __mmask16 used = _mm512_cmp_ps_mask(p, _mm512_setzero_ps(), _CMP_NEQ_UQ);
      product[i] = _mm512_maskz_mul_ps(used, p, _mm512_loadu_ps(norm + 16 * i));
      largest = _mm512_max_ps(product[i], largest);
      poison = _mm512_fmadd_ps(product[i], _mm512_setzero_ps(), poison);
    }
    const float top = _mm512_reduce_max_ps(largest);
    const __m512 inverse = _mm512_set1_ps(top > 0 ? 127.0f / top : 0.0f);
    for (unsigned i = 0; i < 4; ++i) {
      const __m512i w = _mm512_max_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(product[i], inverse)), _mm512_setzero_si512());
      _mm_storeu_si128(reinterpret_cast<__m128i*>(weight + 16 * i), _mm512_cvtusepi32_epi8(w));
    }
    return top / 127.0f + _mm512_reduce_add_ps(poison);
  }

  // Bits 3 and 7 of the three lines are bits 0, 1, 2 of the fourth subgroup's codes (format.md 4.2).
  static __m512i fourth_subgroup(__m512i x0, __m512i x1, __m512i x2) {
    const __m512i low = _mm512_and_si512(_mm512_srli_epi16(x0, 3), _mm512_set1_epi8(0x11));
    const __m512i middle = _mm512_and_si512(_mm512_srli_epi16(x1, 2), _mm512_set1_epi8(0x22));
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(x2, 1), _mm512_set1_epi8(0x44));
    return _mm512_ternarylogic_epi32(low, middle, high, 0xfe);  // or
  }

  // The subgroups of block h and, for k = 1, 2, 3, their words w - 1: of this block, but word 0 of each chain follows word 3 of the
  // block before.
  template <class RawBlock>
  static void words_before(const ValuePlanes& planes, unsigned h, RawBlock raw_block, __m512i* x, __m512i* before) {
    raw_block(h, x);
    __m512i last[4];
    raw_block(h == 0 ? planes.blocks - 1 : h - 1, last);
    for (unsigned k = 1; k < 4; ++k) before[k] = _mm512_alignr_epi8(x[k], last[k], 12);
  }

  // Index nibbles of the four subgroups of block h, for the octet that `lines` points at.
  template <bool kTrellis>
  [[gnu::always_inline]] static void value_index(const ValuePlanes& planes, const uint8_t* lines, unsigned h, __m512i* index) {
    auto raw_block = [&](unsigned block, __m512i* x) __attribute__((always_inline)) {
      for (unsigned k = 0; k < 3; ++k) x[k] = load(lines + planes.line(k, block));
      x[3] = fourth_subgroup(x[0], x[1], x[2]);
    };
    if constexpr (!kTrellis) return raw_block(h, index);
    __m512i x[4], before[4];
    words_before(planes, h, raw_block, x, before);
    // Bit 2 of each nibble: t -> z1 = t ^ t[-1] ^ t[-3]; bit 3: z0 = t[-2].
    auto merge = [](__m512i at, __m512i p1, __m512i p2, __m512i p3) {
      const __m512i merged = _mm512_xor_si512(at, _mm512_ternarylogic_epi32(p1, p3, _mm512_set1_epi8(0x44), 0x28));
      return select(_mm512_set1_epi8(static_cast<char>(0x88)), _mm512_add_epi8(p2, p2), merged);
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
    const __m512i table = load(levels);
    for (size_t group = 0; group < 2; ++group) {
      int8_t* quads = value + group * 8 * quad;
      for (unsigned c = 0; c < 4; ++c) {
        const uint8_t* lines = page + group * planes.group_bytes() + c * 64;
        auto put = [&](size_t dim, __m512i x) {  // dim: first of the 16 dims of the line
          store(quads + c * quad + dim * 4, _mm512_permutexvar_epi8(x, table));
          store(quads + (4 + c) * quad + dim * 4, _mm512_permutexvar_epi8(_mm512_srli_epi16(x, 4), table));
        };
        for (unsigned h = 0; h < planes.blocks; ++h) {
          __m512i index[4];
          value_index<kTrellis>(planes, lines, h, index);
          for (unsigned k = 0; k < 4; ++k) put(size_t{64} * h + 16 * k, index[k]);
        }
        for (unsigned j = 0; j < planes.rest; ++j) put(size_t{64} * planes.blocks + 16 * j, load(lines + planes.rest_line(j)));
      }
    }
  }
  // Trellis codes of 4 bits, whole nibbles: five index bits.
  static void unpack_four_bit_values(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, int8_t* value) {
    const ValuePlanes planes(layout.head_dim, 4);
    const size_t quad = size_t{layout.head_dim} * 4;
    const __m512i table = load(levels), nibble = _mm512_set1_epi8(0x0f), trellis_bit = _mm512_set1_epi8(static_cast<char>(0x88));
    for (unsigned i = 0; i < 8; ++i) {  // groups, octets
      const uint8_t* lines = page + i / 4 * planes.group_bytes() + i % 4 * 64;
      int8_t* low_quad = value + (i / 4 * 8 + i % 4) * quad;
      for (unsigned h = 0; h < planes.blocks; ++h) {
        auto raw_block = [&](unsigned block, __m512i* x) {
          for (unsigned k = 0; k < 4; ++k) x[k] = load(lines + planes.line(k, block));
        };
        __m512i x[8], before[4];
        words_before(planes, h, raw_block, x + 4, before);
        for (unsigned k = 1; k < 4; ++k) x[k] = before[k];
        for (unsigned k = 0; k < 4; ++k) {  // one, two and three steps back are x[k + 3], x[k + 2] and x[k + 1]
          const __m512i merged = _mm512_xor_si512(x[k + 4], _mm512_ternarylogic_epi32(x[k + 3], x[k + 1], trellis_bit, 0x28)), p2 = x[k + 2];
          int8_t* to = low_quad + (size_t{64} * h + 16 * k) * 4;
          store(to, _mm512_permutexvar_epi8(select(nibble, merged, _mm512_add_epi8(p2, p2)), table));
          store(to + 4 * quad, _mm512_permutexvar_epi8(select(nibble, _mm512_srli_epi16(merged, 4), _mm512_srli_epi16(p2, 3)), table));
        }
      }
    }
  }
  static void unpack_values(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, int8_t* value) {
    if (!has_value_blocks_only(layout)) return unpack_values_plain(layout, page, value);
    if (layout.code_bits == 4) return unpack_four_bit_values(layout, levels, page, value);
    layout.table->trellis ? unpack_values_kind<true>(layout, levels, page, value) : unpack_values_kind<false>(layout, levels, page, value);
  }

  // R rows x C registers of 16 dims. 2 d / 128 a row and token.
  template <unsigned R, unsigned C>
  static void accumulate_block(const int8_t* value, const uint8_t* weight, unsigned d, unsigned first, const float* rescale,
                               const float* unit, float* acc) {
    __m512i total[R][C] = {};
    const int8_t* v = value + size_t{first} * 4;
    for (unsigned quad = 0; quad < 16; ++quad, v += size_t{d} * 4) {
      __m512i x[C];
      for (unsigned j = 0; j < C; ++j) x[j] = load(v + 64 * j);
      for (unsigned r = 0; r < R; ++r) {
        const __m512i w = broadcast_word(weight + r * 64 + quad * 4);
        for (unsigned j = 0; j < C; ++j) total[r][j] = _mm512_dpbusd_epi32(total[r][j], w, x[j]);
      }
    }
    for (unsigned r = 0; r < R; ++r) {
      for (unsigned j = 0; j < C; ++j) {
        float* a = acc + size_t{r} * d + first + 16 * j;
        const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(a), _mm512_set1_ps(rescale[r]));
        _mm512_storeu_ps(a, _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[r][j]), _mm512_set1_ps(unit[r]), kept));
      }
    }
  }
  template <unsigned R>
  static void accumulate_values_rows(const int8_t* value, const uint8_t* weight, unsigned d, const float* rescale, const float* unit,
                                     float* acc) {
    unsigned i = 0;
    for (; i + 64 <= d; i += 64) accumulate_block<R, 4>(value, weight, d, i, rescale, unit, acc);
    for (; i < d; i += 16) accumulate_block<R, 1>(value, weight, d, i, rescale, unit, acc);
  }
  static void accumulate_values(const int8_t* value, const uint8_t* weight, unsigned n_rows, unsigned d, const float* rescale,
                                const float* unit, float* acc) {
    with_rows<4>(n_rows, [&]<unsigned R>() { accumulate_values_rows<R>(value, weight, d, rescale, unit, acc); });
  }

  // The same sums straight from the page, S subgroups of 16 dims at a time: four of three lines, or rest lines.
  template <unsigned R, unsigned S, class LoadLines>
  static void accumulate_lines(__m512i table, LoadLines load_lines, size_t group_bytes, const uint8_t* weight, unsigned d, unsigned first,
                               const float* rescale, const float* unit, const uint8_t* page, float* acc) {
    __m512i total[R][S] = {};
#pragma GCC unroll 1  // gcc would unroll it, or not, as other code of the file goes, and take half as long again if it does
    for (unsigned i = 0; i < 8; ++i) {  // groups and their octets
      __m512i x[S];
      load_lines(page + i / 4 * group_bytes + i % 4 * 64, x);
      for (unsigned k = 0; k < S; ++k) {
        const __m512i low = _mm512_permutexvar_epi8(x[k], table), high = _mm512_permutexvar_epi8(_mm512_srli_epi16(x[k], 4), table);
        for (unsigned r = 0; r < R; ++r) {
          const uint8_t* w = weight + r * 64 + i / 4 * 32 + i % 4 * 4;
          total[r][k] = _mm512_dpbusd_epi32(total[r][k], broadcast_word(w), low);
          total[r][k] = _mm512_dpbusd_epi32(total[r][k], broadcast_word(w + 16), high);
        }
      }
    }
    for (unsigned r = 0; r < R; ++r) {
      for (unsigned k = 0; k < S; ++k) {
        float* a = acc + size_t{r} * d + first + 16 * k;
        const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(a), _mm512_set1_ps(rescale[r]));
        _mm512_storeu_ps(a, _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[r][k]), _mm512_set1_ps(unit[r]), kept));
      }
    }
  }
  template <unsigned R, bool kTrellis>
  static void accumulate_page_rows(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const uint8_t* weight, const float* rescale,
                                   const float* unit, float* acc) {
    const ValuePlanes planes(layout.head_dim);
    const __m512i table = load(levels);
    const unsigned d = layout.head_dim;
    for (unsigned h = 0; h < planes.blocks; ++h) {
      auto block = [&](const uint8_t* lines, __m512i* x) __attribute__((always_inline)) { value_index<kTrellis>(planes, lines, h, x); };
      accumulate_lines<R, 4>(table, block, planes.group_bytes(), weight, d, 64 * h, rescale, unit, page, acc);
    }
    for (unsigned j = 0; j < planes.rest; ++j) {
      auto rest = [&](const uint8_t* lines, __m512i* x) { x[0] = load(lines + planes.rest_line(j)); };
      accumulate_lines<R, 1>(table, rest, planes.group_bytes(), weight, d, 64 * planes.blocks + 16 * j, rescale, unit, page, acc);
    }
  }
  template <bool kTrellis>
  static void accumulate_page_kind(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const uint8_t* weight, unsigned n_rows,
                                   const float* rescale, const float* unit, float* acc) {
    with_rows<4>(n_rows, [&]<unsigned R>() { accumulate_page_rows<R, kTrellis>(layout, levels, page, weight, rescale, unit, acc); });
  }
  static void accumulate_page(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const uint8_t* weight, unsigned n_rows, const float* rescale,
                              const float* unit, float* acc) {
    layout.table->trellis ? accumulate_page_kind<true>(layout, levels, page, weight, n_rows, rescale, unit, acc)
                          : accumulate_page_kind<false>(layout, levels, page, weight, n_rows, rescale, unit, acc);
  }

  static __m512 load_row(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

  // While rows come straight from a page, the page `ahead` bytes on, the next to be read, is fetched line by line: memory then keeps
  // pace with the sums.
  static void prefetch_ahead(const Half* p, ptrdiff_t ahead) { _mm_prefetch(reinterpret_cast<const char*>(p) + ahead, _MM_HINT_T0); }

  template <unsigned R>
  static void dot_rows_block(const Half* key, ptrdiff_t ahead, unsigned n, const float* query, unsigned d, float* score) {
    for (unsigned t = 0; t < 64; t += 4) {
      __m512 total[R][4] = {};
      const Half* row[4];
      for (unsigned j = 0; j < 4; ++j) row[j] = key + size_t{t + j < n ? t + j : t} * d;
      auto step = [&](unsigned i) {
        __m512 k[4];
        for (unsigned j = 0; j < 4; ++j) k[j] = load_row(row[j] + i);
        for (unsigned r = 0; r < R; ++r) {
          const __m512 q = _mm512_loadu_ps(query + size_t{r} * d + i);
          for (unsigned j = 0; j < 4; ++j) total[r][j] = _mm512_fmadd_ps(k[j], q, total[r][j]);
        }
      };
      for (unsigned i = 0; t < n && i < d; i += 32) {
        // The four rows' lines in the order of their addresses, which memory serves best.
        for (unsigned j = 0; j < 4; ++j) prefetch_ahead(key + size_t{t} * d + 4 * i + 32 * j, ahead);
        step(i);
        if (i + 16 < d) step(i + 16);
      }
      for (unsigned r = 0; r < R; ++r) {
        for (unsigned j = 0; j < 4; ++j) score[r * 64 + t + j] = _mm512_reduce_add_ps(total[r][j]);
      }
    }
  }
  static void dot_rows(const Half* key, ptrdiff_t ahead, unsigned n, const float* query, unsigned n_rows, unsigned d, float* score) {
    with_rows<4>(n_rows, [&]<unsigned R>() { dot_rows_block<R>(key, ahead, n, query, d, score); });
  }

  // R rows x C registers: enough sums side by side to hide the latency of the multiply-add.
  template <unsigned R, unsigned C>
  static void accumulate_rows_block(const Half* value, ptrdiff_t ahead, unsigned n, const float* probability, unsigned d, unsigned first, const float* rescale,
                                    float* acc) {
    __m512 total[R][C];
    for (unsigned r = 0; r < R; ++r) {
      for (unsigned j = 0; j < C; ++j) {
        total[r][j] = _mm512_mul_ps(_mm512_loadu_ps(acc + size_t{r} * d + first + 16 * j), _mm512_set1_ps(rescale[r]));
      }
    }
    for (unsigned t = 0; t < n; ++t) {
      const Half* row = value + size_t{t} * d + first;
      const Half* line = value + size_t{first} * kPageTokens + t * 16 * C;  // in the order of addresses, as above
      for (unsigned j = 0; j < C; j += 2) prefetch_ahead(line + 16 * j, ahead);
      __m512 v[C];
      for (unsigned j = 0; j < C; ++j) v[j] = load_row(row + 16 * j);
      for (unsigned r = 0; r < R; ++r) {
        const float p = probability[r * 64 + t];
        if (p == 0.0f) continue;  // values of removed cells must not leak, whatever they are
        for (unsigned j = 0; j < C; ++j) total[r][j] = _mm512_fmadd_ps(v[j], _mm512_set1_ps(p), total[r][j]);
      }
    }
    for (unsigned r = 0; r < R; ++r) {
      for (unsigned j = 0; j < C; ++j) _mm512_storeu_ps(acc + size_t{r} * d + first + 16 * j, total[r][j]);
    }
  }
  template <unsigned R>
  static void accumulate_rows_all(const Half* value, ptrdiff_t ahead, unsigned n, const float* probability, unsigned d, const float* rescale, float* acc) {
    unsigned i = 0;
    // Few rows take 128 dims at once: memory is read in one go, not by halves of its rows.
    for (; R <= 2 && i + 128 <= d; i += 128) accumulate_rows_block<R, R <= 2 ? 8 : 4>(value, ahead, n, probability, d, i, rescale, acc);
    for (; i + 64 <= d; i += 64) accumulate_rows_block<R, 4>(value, ahead, n, probability, d, i, rescale, acc);
    for (; i < d; i += 16) accumulate_rows_block<R, 1>(value, ahead, n, probability, d, i, rescale, acc);
  }
  static void accumulate_rows(const Half* value, ptrdiff_t ahead, unsigned n, const float* probability, unsigned n_rows, unsigned d,
                              const float* rescale, float* acc) {
    with_rows<4>(n_rows, [&]<unsigned R>() { accumulate_rows_all<R>(value, ahead, n, probability, d, rescale, acc); });
  }
};

}  // namespace

const KernelTable kKernelsAvx512 = make_table<Avx512>("avx512");

}  // namespace kvt::cpu
