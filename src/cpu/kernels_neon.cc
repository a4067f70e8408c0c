// AArch64 NEON with the dot product extension (FEAT_DotProd). sdot adds four s8 x s8 products to each of four int32 lanes. Shifted
// levels (3..126), sign bits and softmax weights (0..127) read the same as s8 and as u8, so the scratch layouts and the integer sums
// are those of the other tables. tbl gives zero for an index beyond 15: codes are masked, high nibbles come from byte shifts.
#include <arm_neon.h>

#include "cpu/attend_loop.h"
#include "cpu/encode_vector.h"
#include "cpu/unpack_plain.h"

namespace kvt::cpu {
namespace {

inline uint8x16_t load(const uint8_t* p) { return vld1q_u8(p); }
inline int8x16_t load_signed(const uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
inline int8x16_t load_signed(const int8_t* p) { return vld1q_s8(p); }

// exp(x) for x <= 0, with the terms of kernels_avx2.cc. A NaN passes through unaided: it converts to the exponent 0.
inline float32x4_t exp_negative(float32x4_t x) {
  const uint32x4_t too_small = vcltq_f32(x, vdupq_n_f32(-87.0f));  // where r may be inf - inf
  const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 1.44269504f));
  float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(0.693359375f));
  r = vfmsq_f32(r, n, vdupq_n_f32(-2.12194440e-4f));
  float32x4_t p = vdupq_n_f32(1.0f / 720);
  for (float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = vfmaq_f32(vdupq_n_f32(coefficient), p, r);
  const int32x4_t exponent = vshlq_n_s32(vcvtq_s32_f32(n), 23);
  const int32x4_t scaled = vaddq_s32(vreinterpretq_s32_f32(p), exponent);
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_s32(scaled), too_small));
}

struct Neon : VectorCoder<4> {
  static constexpr unsigned kDirectRows = 4;
  static constexpr unsigned kRegisterBytes = 16;

  static void prefetch_page(const uint8_t* page, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(page + i);
  }

  static void halves_to_floats(const uint8_t* from, size_t n, float* to) {  // n: a multiple of 8
    for (size_t i = 0; i < n; i += 8) {
      const float16x8_t h = vreinterpretq_f16_u8(load(from + 2 * i));
      vst1q_f32(to + i, vcvt_f32_f16(vget_low_f16(h)));
      vst1q_f32(to + i + 4, vcvt_high_f32_f16(h));
    }
  }

  static bool load_mask(const uint8_t* from, unsigned n, float* to) {
    const unsigned whole = n / 8 * 8;
    halves_to_floats(from, whole, to);
    for (unsigned t = whole; t < 64; ++t) {
      to[t] = t < n ? half_to_float(static_cast<uint16_t>(from[2 * t] | from[2 * t + 1] << 8)) : kMinusInfinity;
    }
    uint32x4_t none = vdupq_n_u32(~0u);
    for (unsigned t = 0; t < 64; t += 4) none = vandq_u32(none, vceqq_f32(vld1q_f32(to + t), vdupq_n_f32(kMinusInfinity)));
    return vminvq_u32(none) == 0;
  }

  // Levels of a quarter key line, 4 tokens: dims 8u..8u+3 (low) and 8u+4..8u+7 (high); the page's bytes beside them.
  struct KeyLevels {
    uint8x16_t low, high, raw;
  };
  // Calls visit(u, KeyLevels[C]) for each line u of C consecutive quarters; trellis lines come chain by chain.
  template <KeyKind kKind, unsigned C, class Visit>
  [[gnu::always_inline]] static void for_each_key_line(uint8x16x2_t table, const uint8_t* quarter, unsigned n_lines, Visit visit) {
    const uint8x16_t nibble = vdupq_n_u8(0x0f);
    KeyLevels levels[C];
    if constexpr (kKind != KeyKind::kTrellis) {
      for (unsigned u = 0; u < n_lines; ++u) {
        for (unsigned j = 0; j < C; ++j) {
          const uint8x16_t x = load(quarter + u * 64 + j * 16);
          levels[j] = {vqtbl1q_u8(table.val[0], vandq_u8(x, nibble)), vqtbl1q_u8(table.val[0], vshrq_n_u8(x, 4)), x};
        }
        visit(u, levels);
      }
      return;
    }
    auto rotate = [](uint8x16_t x) {
      const uint32x4_t words = vreinterpretq_u32_u8(x);
      return vreinterpretq_u8_u32(vsliq_n_u32(vshrq_n_u32(words, 28), words, 4));
    };
    for (unsigned c = 0; c < 4; ++c) {
      const unsigned last = (n_lines - 1 - c) / 4 * 4 + c;  // line of the chain; c + 4 at least
      uint8x16_t before[3][C];  // the lines 1, 2 and 3 back: before the first stand the last ones, rotated by a nibble (format.md 4.4)
      for (unsigned j = 0; j < C; ++j) {
        const uint8_t* line = quarter + last * 64 + j * 16;
        before[0][j] = rotate(load(line));
        before[1][j] = rotate(load(line - 256));
        before[2][j] = rotate(last >= 8 ? load(line - 512) : before[0][j]);
      }
      for (unsigned u = c; u < n_lines; u += 4) {
        for (unsigned j = 0; j < C; ++j) {
          const uint8x16_t x = load(quarter + u * 64 + j * 16), p2 = before[1][j];
          // Bit 3 of each nibble: t -> z1 = t ^ t[-1] ^ t[-3]; bit 4 of the indices: z0 = t[-2].
          const uint8x16_t merged = veorq_u8(x, vandq_u8(veorq_u8(before[0][j], before[2][j]), vdupq_n_u8(0x88)));
          const uint8x16_t low = vandq_u8(vbslq_u8(nibble, merged, vshlq_n_u8(p2, 1)), vdupq_n_u8(0x1f));
          const uint8x16_t high = vbslq_u8(nibble, vshrq_n_u8(merged, 4), vshrq_n_u8(p2, 3));
          levels[j] = {vqtbl2q_u8(table, low), vqtbl2q_u8(table, high), x};
          before[2][j] = p2;
          before[1][j] = before[0][j];
          before[0][j] = x;
        }
        visit(u, levels);
      }
    }
  }

  static uint8x16_t low_signs(uint8x16_t x) { return vandq_u8(vshrq_n_u8(x, 3), vdupq_n_u8(1)); }
  static uint8x16_t high_signs(uint8x16_t x) { return vshrq_n_u8(x, 7); }

  template <KeyKind kKind>
  static void unpack_keys_kind(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, uint8_t* key, uint8_t* sign) {
    const uint8x16x2_t table = {{load(levels), load(levels + 16)}};
    const unsigned n_lines = layout.head_dim / 8;
    for (unsigned quarter = 0; quarter < 16; quarter += 2) {
      const size_t first_line = size_t{quarter / 4} * n_lines, within = quarter % 4 * 16;
      for_each_key_line<kKind, 2>(table, page + first_line * 64 + within, n_lines, [&](unsigned u, const KeyLevels* line) {
        for (unsigned j = 0; j < 2; ++j) {
          const size_t to = (first_line + u) * 128 + within + j * 16;
          vst1q_u8(key + to, line[j].low);
          vst1q_u8(key + to + 64, line[j].high);
          if constexpr (kKind == KeyKind::kSigns) {
            vst1q_u8(sign + to, low_signs(line[j].raw));
            vst1q_u8(sign + to + 64, high_signs(line[j].raw));
          }
        }
      });
    }
  }
  static void unpack_keys(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, uint8_t* key, uint8_t* sign) {
    layout.table->trellis ? unpack_keys_kind<KeyKind::kTrellis>(layout, levels, page, key, sign)
    : layout.has_residual ? unpack_keys_kind<KeyKind::kSigns>(layout, levels, page, key, sign)
                          : unpack_keys_kind<KeyKind::kScalar>(layout, levels, page, key, sign);
  }

  // Blocks of four registers so that R rows keep 12 to 16 accumulators busy: enough to hide the latency of sdot on four pipes.
  template <unsigned R>
  static constexpr unsigned kBlocks = R == 1 ? 4 : R == 2 ? 2 : 1;

  // total[r][c] += word Lane of row r times each of the four words of register c of one line.
  template <int Lane, unsigned R, unsigned B, class Byte>
  [[gnu::always_inline]] static void dot_line(const Byte* line, size_t block_stride, const int8x16_t (&words)[R],
                                              int32x4_t (&total)[R][4 * B]) {
    for (unsigned c = 0; c < 4 * B; ++c) {
      const int8x16_t x = load_signed(line + c / 4 * block_stride + c % 4 * 16);
      for (unsigned r = 0; r < R; ++r) total[r][c] = vdotq_laneq_s32(total[r][c], x, words[r], Lane);
    }
  }
  // The common inner product of keys and values: n_lines lines (a multiple of 4) of B blocks of 64 bytes; row r multiplies line i by
  // the four bytes at row + r * row_stride + 4 * i. 2 d / 32 sdot a row and token.
  template <unsigned R, unsigned B, class Byte, class RowByte>
  [[gnu::always_inline]] static void dot_lines(const Byte* line, size_t line_stride, size_t block_stride, unsigned n_lines,
                                               const RowByte* row, size_t row_stride, int32x4_t (&total)[R][4 * B]) {
    for (unsigned i = 0; i < n_lines; i += 4, line += 4 * line_stride, row += 16) {
      int8x16_t words[R];
      for (unsigned r = 0; r < R; ++r) words[r] = load_signed(row + r * row_stride);
      dot_line<0, R, B>(line, block_stride, words, total);
      dot_line<1, R, B>(line + line_stride, block_stride, words, total);
      dot_line<2, R, B>(line + 2 * line_stride, block_stride, words, total);
      dot_line<3, R, B>(line + 3 * line_stride, block_stride, words, total);
    }
  }

  template <unsigned R>
  static void dot_keys_rows(const uint8_t* key, const int8_t* query, unsigned d, int32_t* sum) {
    constexpr unsigned B = kBlocks<R>;  // tiles of 16 tokens at a time
    for (unsigned tile = 0; tile < 4; tile += B) {
      int32x4_t total[R][4 * B] = {};
      dot_lines<R, B>(key + size_t{tile} * 16 * d, 64, size_t{16} * d, d / 4, query, d, total);
      for (unsigned r = 0; r < R; ++r) {
        for (unsigned c = 0; c < 4 * B; ++c) vst1q_s32(sum + r * 64 + tile * 16 + c * 4, total[r][c]);
      }
    }
  }
  static void dot_keys(const uint8_t* key, const int8_t* query, unsigned n_rows, unsigned d, int32_t* sum) {
    with_rows<4>(n_rows, [&]<unsigned R>() { dot_keys_rows<R>(key, query, d, sum); });
  }
  static void dot_signs(const uint8_t* sign, const int8_t* query, unsigned n_rows, unsigned d, int32_t* sum) {
    dot_keys(sign, query, n_rows, d, sum);
  }

  // The same sums straight from the page, C registers of 4 tokens at a time: with signs 2 R C accumulators stay in registers.
  // Each quarter line: 1 and, 1 shift, 2 look-ups, 2 sdot a row; with signs 3 operations and 2 sdot a row more.
  template <unsigned R, unsigned C, KeyKind kKind>
  static void dot_page_block(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const int8_t* query, const int8_t* sketch_query, int32_t* sum,
                             int32_t* sign_sum) {
    constexpr bool kSigns = kKind == KeyKind::kSigns;
    const uint8x16x2_t table = {{load(levels), load(levels + 16)}};
    const unsigned d = layout.head_dim, n_lines = d / 8;
    auto dot = [](int32x4_t total, uint8x16_t low, uint8x16_t high, const int8_t* words) {
      const int8x8_t pair = vld1_s8(words);
      total = vdotq_lane_s32(total, vreinterpretq_s8_u8(low), pair, 0);
      return vdotq_lane_s32(total, vreinterpretq_s8_u8(high), pair, 1);
    };
    for (unsigned quarter = 0; quarter < 16; quarter += C) {
      int32x4_t total[R][C] = {}, sign_total[R][C] = {};
      const uint8_t* first = page + size_t{quarter / 4} * n_lines * 64 + quarter % 4 * 16;
      for_each_key_line<kKind, C>(table, first, n_lines, [&](unsigned u, const KeyLevels* line) {
        for (unsigned j = 0; j < C; ++j) {
          for (unsigned r = 0; r < R; ++r) total[r][j] = dot(total[r][j], line[j].low, line[j].high, query + size_t{r} * d + 8 * u);
          if constexpr (kSigns) {
            const uint8x16_t low = low_signs(line[j].raw), high = high_signs(line[j].raw);
            for (unsigned r = 0; r < R; ++r) sign_total[r][j] = dot(sign_total[r][j], low, high, sketch_query + size_t{r} * d + 8 * u);
          }
        }
      });
      for (unsigned r = 0; r < R; ++r) {
        for (unsigned j = 0; j < C; ++j) {
          vst1q_s32(sum + r * 64 + (quarter + j) * 4, total[r][j]);
          if constexpr (kSigns) vst1q_s32(sign_sum + r * 64 + (quarter + j) * 4, sign_total[r][j]);
        }
      }
    }
  }
  template <KeyKind kKind>
  static void dot_page_rows(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const int8_t* query, const int8_t* sketch_query,
                            unsigned n_rows, int32_t* sum, int32_t* sign_sum) {
    constexpr unsigned kOneRow = kKind == KeyKind::kTrellis ? 2 : 4;  // a trellis keeps three more lines in registers
    with_rows<4>(n_rows, [&]<unsigned R>() { dot_page_block<R, R == 1 ? kOneRow : 2, kKind>(layout, levels, page, query, sketch_query, sum, sign_sum); });
  }
  static void dot_page(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const int8_t* query, const int8_t* sketch_query, unsigned n_rows,
                       int32_t* sum, int32_t* sign_sum) {
    layout.table->trellis ? dot_page_rows<KeyKind::kTrellis>(layout, levels, page, query, sketch_query, n_rows, sum, sign_sum)
    : layout.has_residual ? dot_page_rows<KeyKind::kSigns>(layout, levels, page, query, sketch_query, n_rows, sum, sign_sum)
                          : dot_page_rows<KeyKind::kScalar>(layout, levels, page, query, sketch_query, n_rows, sum, sign_sum);
  }

  static void scale_scores(const int32_t* sum, int32_t offset, float factor, const float* norm, float* score) {
    for (unsigned t = 0; t < 64; t += 4) {
      const float32x4_t x = vcvtq_f32_s32(vsubq_s32(vld1q_s32(sum + t), vdupq_n_s32(offset)));
      vst1q_f32(score + t, vmulq_f32(vmulq_n_f32(vld1q_f32(norm + t), factor), x));
    }
  }
  static void add_sketch(const int32_t* sum, int32_t total, float factor, const float* residual, float* score) {
    for (unsigned t = 0; t < 64; t += 4) {
      const float32x4_t x = vcvtq_f32_s32(vmlsq_n_s32(vdupq_n_s32(total), vld1q_s32(sum + t), 2));
      const float32x4_t scaled = vmulq_n_f32(vld1q_f32(residual + t), factor);
      vst1q_f32(score + t, vfmaq_f32(vld1q_f32(score + t), scaled, x));
    }
  }
  static float mask_scores(const float* mask, float slope, float row_max, float* score) {
    const float32x4_t none = vdupq_n_f32(kMinusInfinity);
    float32x4_t largest = vdupq_n_f32(row_max);
    for (unsigned t = 0; t < 64; t += 4) {
      const float32x4_t m = vld1q_f32(mask + t);
      const float32x4_t s = vfmaq_n_f32(vld1q_f32(score + t), m, slope);
      const float32x4_t masked = vbslq_f32(vceqq_f32(m, none), none, s);
      largest = vmaxnmq_f32(largest, masked);  // a NaN score is passed over
      vst1q_f32(score + t, masked);
    }
    return vmaxvq_f32(largest);
  }
  static float exp_one(float x) { return vgetq_lane_f32(exp_negative(vdupq_n_f32(x)), 0); }
  static float exp_scores(const float* score, float shift, float* probability) {
    float32x4_t total = vdupq_n_f32(0);
    for (unsigned t = 0; t < 64; t += 4) {
      const float32x4_t p = exp_negative(vsubq_f32(vld1q_f32(score + t), vdupq_n_f32(shift)));
      vst1q_f32(probability + t, p);
      total = vaddq_f32(total, p);
    }
    return vaddvq_f32(total);
  }

  static float quantise_weights(const float* probability, const float* norm, uint8_t* weight) {
    float32x4_t product[16], largest = vdupq_n_f32(0), poison = vdupq_n_f32(0);
    for (unsigned i = 0; i < 16; ++i) {
      const float32x4_t p = vld1q_f32(probability + 4 * i);
      const uint32x4_t bits = vreinterpretq_u32_f32(vmulq_f32(p, vld1q_f32(norm + 4 * i)));
      product[i] = vreinterpretq_f32_u32(vbicq_u32(bits, vceqzq_f32(p)));
      largest = vmaxnmq_f32(largest, product[i]);
      poison = vfmaq_n_f32(poison, product[i], 0.0f);
    }
    const float top = vmaxvq_f32(largest);
    const float inverse = top > 0 ? 127.0f / top : 0.0f;
    for (unsigned i = 0; i < 4; ++i) {
      int16x4_t w[4];
      for (unsigned j = 0; j < 4; ++j) w[j] = vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(product[4 * i + j], inverse)));  // NaN gives 0
      vst1q_u8(weight + 16 * i, vcombine_u8(vqmovun_s16(vcombine_s16(w[0], w[1])), vqmovun_s16(vcombine_s16(w[2], w[3]))));
    }
    return top / 127.0f + vaddvq_f32(poison);
  }

  // Bits 3 and 7 of three lines are bits 0, 1, 2 of the fourth subgroup's codes; bit 3 of the result is left to chance.
  static uint8x16_t fourth_subgroup(uint8x16_t x0, uint8x16_t x1, uint8x16_t x2) {
    const uint8x16_t low = vbslq_u8(vdupq_n_u8(0x11), vshrq_n_u8(x0, 3), vshrq_n_u8(x1, 2));
    return vbslq_u8(vdupq_n_u8(0x33), low, vshrq_n_u8(x2, 1));
  }

  // The subgroups of block h and, for k = 1, 2, 3, their words w - 1: word 0 follows word 3 of the block before.
  template <class RawBlock>
  static void words_before(const ValuePlanes& planes, unsigned h, RawBlock raw_block, uint8x16_t* x, uint8x16_t* before) {
    uint8x16_t last[4];
    raw_block(h, x);
    raw_block(h == 0 ? planes.blocks - 1 : h - 1, last);
    for (unsigned k = 1; k < 4; ++k) before[k] = vextq_u8(last[k], x[k], 12);
  }

  // Index nibbles of the four subgroups of block h for a quarter of a line: 4 words, the words of one trellis chain.
  template <bool kTrellis>
  static void value_index(const ValuePlanes& planes, const uint8_t* quarter, unsigned h, uint8x16_t (&index)[4]) {
    auto raw_block = [&](unsigned block, uint8x16_t* x) {
      for (unsigned k = 0; k < 3; ++k) x[k] = load(quarter + planes.line(k, block));
      x[3] = fourth_subgroup(x[0], x[1], x[2]);
    };
    if constexpr (!kTrellis) return raw_block(h, index);
    uint8x16_t x[4], before[4];
    words_before(planes, h, raw_block, x, before);
    // Bit 2 of each nibble: t -> z1 = t ^ t[-1] ^ t[-3]; bit 3: z0 = t[-2].
    auto merge = [](uint8x16_t at, uint8x16_t p1, uint8x16_t p2, uint8x16_t p3) {
      const uint8x16_t merged = veorq_u8(at, vandq_u8(veorq_u8(p1, p3), vdupq_n_u8(0x44)));
      return vbslq_u8(vdupq_n_u8(0x88), vshlq_n_u8(p2, 1), merged);
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
    const int8x16_t table = load_signed(levels);
    for (size_t group = 0; group < 2; ++group) {
      int8_t* quads = value + group * 8 * quad;
      for (unsigned c = 0; c < 4; ++c) {
        for (unsigned quarter = 0; quarter < 4; ++quarter) {
          auto put = [&](size_t dim, uint8x16_t x) {  // dim: first of the 4 dims of this quarter line
            vst1q_s8(quads + c * quad + dim * 4, vqtbl1q_s8(table, vandq_u8(x, vdupq_n_u8(0x0f))));
            vst1q_s8(quads + (4 + c) * quad + dim * 4, vqtbl1q_s8(table, vshrq_n_u8(x, 4)));
          };
          const uint8_t* from = page + group * planes.group_bytes() + c * 64 + quarter * 16;
          for (unsigned h = 0; h < planes.blocks; ++h) {
            uint8x16_t index[4];
            value_index<kTrellis>(planes, from, h, index);
            for (unsigned k = 0; k < 4; ++k) put(size_t{64} * h + 16 * k + 4 * quarter, index[k]);
          }
          for (unsigned j = 0; j < planes.rest; ++j) {
            put(size_t{64} * planes.blocks + 16 * j + 4 * quarter, load(from + planes.rest_line(j)));
          }
        }
      }
    }
  }
  // Trellis codes of 4 bits, whole nibbles: five index bits.
  static void unpack_four_bit_values(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, int8_t* value) {
    const ValuePlanes planes(layout.head_dim, 4);
    const size_t quad = size_t{layout.head_dim} * 4;
    const int8x16x2_t table = {{load_signed(levels), load_signed(levels + 16)}};
    const uint8x16_t nibble = vdupq_n_u8(0x0f);
    for (unsigned i = 0; i < 32; ++i) {  // groups, octets, quarters
      const uint8_t* quarter = page + i / 16 * planes.group_bytes() + i % 16 * 16;
      int8_t* low_quad = value + (i / 16 * 8 + i % 16 / 4) * quad + i % 4 * 16;
      for (unsigned h = 0; h < planes.blocks; ++h) {
        auto raw_block = [&](unsigned block, uint8x16_t* x) {
          for (unsigned k = 0; k < 4; ++k) x[k] = load(quarter + planes.line(k, block));
        };
        uint8x16_t x[8], before[4];
        words_before(planes, h, raw_block, x + 4, before);
        for (unsigned k = 1; k < 4; ++k) x[k] = before[k];
        for (unsigned k = 0; k < 4; ++k) {  // one, two and three steps back are x[k + 3], x[k + 2] and x[k + 1]
          const uint8x16_t merged = veorq_u8(x[k + 4], vandq_u8(veorq_u8(x[k + 3], x[k + 1]), vdupq_n_u8(0x88)));
          const uint8x16_t low = vandq_u8(vbslq_u8(nibble, merged, vshlq_n_u8(x[k + 2], 1)), vdupq_n_u8(0x1f));
          const uint8x16_t high = vbslq_u8(nibble, vshrq_n_u8(merged, 4), vshrq_n_u8(x[k + 2], 3));
          int8_t* to = low_quad + (size_t{64} * h + 16 * k) * 4;
          vst1q_s8(to, vqtbl2q_s8(table, low));
          vst1q_s8(to + 4 * quad, vqtbl2q_s8(table, high));
        }
      }
    }
  }
  static void unpack_values(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, int8_t* value) {
    if (!has_value_blocks_only(layout)) return unpack_values_plain(layout, page, value);
    if (layout.code_bits == 4) return unpack_four_bit_values(layout, levels, page, value);
    layout.table->trellis ? unpack_values_kind<true>(layout, levels, page, value) : unpack_values_kind<false>(layout, levels, page, value);
  }

  static void fold(int32x4_t total, float rescale, float unit, float* acc) {
    vst1q_f32(acc, vfmaq_n_f32(vmulq_n_f32(vld1q_f32(acc), rescale), vcvtq_f32_s32(total), unit));
  }

  // 16 * B dims from `first`.
  template <unsigned R, unsigned B>
  static void accumulate_block(const int8_t* value, const uint8_t* weight, unsigned d, unsigned first, const float* rescale,
                               const float* unit, float* acc) {
    int32x4_t total[R][4 * B] = {};
    dot_lines<R, B>(value + size_t{first} * 4, size_t{d} * 4, 64, 16, weight, 64, total);
    for (unsigned r = 0; r < R; ++r) {
      for (unsigned c = 0; c < 4 * B; ++c) fold(total[r][c], rescale[r], unit[r], acc + size_t{r} * d + first + 4 * c);
    }
  }
  template <unsigned R>
  static void accumulate_values_rows(const int8_t* value, const uint8_t* weight, unsigned d, const float* rescale, const float* unit,
                                     float* acc) {
    constexpr unsigned B = kBlocks<R>;
    unsigned i = 0;
    for (; i + 16 * B <= d; i += 16 * B) accumulate_block<R, B>(value, weight, d, i, rescale, unit, acc);
    for (; i < d; i += 16) accumulate_block<R, 1>(value, weight, d, i, rescale, unit, acc);
  }
  static void accumulate_values(const int8_t* value, const uint8_t* weight, unsigned n_rows, unsigned d, const float* rescale,
                                const float* unit, float* acc) {
    with_rows<4>(n_rows, [&]<unsigned R>() { accumulate_values_rows<R>(value, weight, d, rescale, unit, acc); });
  }

  // The same sums straight from the page, four registers of 4 dims at a time: a quarter of each subgroup of a 64-dim block, or a whole
  // rest line; load_line fills them, register k holds dims first + k * dim_stride + 0..3.
  // words: for each chunk c of each group, the weights of quads c (low nibbles) and 4 + c (high nibbles).
  template <unsigned R, class LoadLine>
  static void accumulate_lines(const uint8_t* page, size_t group_bytes, LoadLine load_line, int8x16_t table, const int8_t (&words)[R][64],
                               unsigned d, unsigned first, unsigned dim_stride, const float* rescale, const float* unit, float* acc) {
    int32x4_t total[R][4] = {};
    for (unsigned i = 0; i < 8; ++i) {  // one loop over groups and chunks: gcc would unroll an inner one and spill
      uint8x16_t x[4];
      load_line(page + i / 4 * group_bytes + i % 4 * 64, x);
      int8x8_t word[R];
      for (unsigned r = 0; r < R; ++r) word[r] = vld1_s8(words[r] + i * 8);
      for (unsigned k = 0; k < 4; ++k) {
        const int8x16_t low = vqtbl1q_s8(table, vandq_u8(x[k], vdupq_n_u8(0x0f))), high = vqtbl1q_s8(table, vshrq_n_u8(x[k], 4));
        for (unsigned r = 0; r < R; ++r) {
          total[r][k] = vdotq_lane_s32(total[r][k], low, word[r], 0);
          total[r][k] = vdotq_lane_s32(total[r][k], high, word[r], 1);
        }
      }
    }
    for (unsigned r = 0; r < R; ++r) {
      for (unsigned k = 0; k < 4; ++k) fold(total[r][k], rescale[r], unit[r], acc + size_t{r} * d + first + k * dim_stride);
    }
  }
  template <unsigned R, bool kTrellis>
  static void accumulate_page_rows(const SideLayout& layout, const uint8_t* levels, const uint8_t* page, const uint8_t* weight, const float* rescale,
                                   const float* unit, float* acc) {
    const ValuePlanes planes(layout.head_dim);
    const int8x16_t table = load_signed(levels);
    const unsigned d = layout.head_dim;
    int8_t words[R][64];
    for (unsigned i = 0; i < R * 2; ++i) {
      const int32x4_t low = vreinterpretq_s32_u8(load(weight + i * 32)), high = vreinterpretq_s32_u8(load(weight + i * 32 + 16));
      vst1q_s8(words[i / 2] + i % 2 * 32, vreinterpretq_s8_s32(vzip1q_s32(low, high)));
      vst1q_s8(words[i / 2] + i % 2 * 32 + 16, vreinterpretq_s8_s32(vzip2q_s32(low, high)));
    }
    for (unsigned h = 0; h < planes.blocks; ++h) {
      for (unsigned quarter = 0; quarter < 4; ++quarter) {
        auto block = [&](const uint8_t* lines, uint8x16_t (&x)[4]) {
          value_index<kTrellis>(planes, lines + quarter * 16, h, x);
        };
        accumulate_lines<R>(page, planes.group_bytes(), block, table, words, d, 64 * h + 4 * quarter, 16, rescale, unit, acc);
      }
    }
    for (unsigned j = 0; j < planes.rest; ++j) {
      auto rest = [&](const uint8_t* lines, uint8x16_t (&x)[4]) {
        for (unsigned k = 0; k < 4; ++k) x[k] = load(lines + planes.rest_line(j) + k * 16);
      };
      accumulate_lines<R>(page, planes.group_bytes(), rest, table, words, d, 64 * planes.blocks + 16 * j, 4, rescale, unit, acc);
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

  static float32x4_t load_row(const Half* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p->bytes))); }

  template <unsigned R>
  static void dot_rows_block(const Half* key, unsigned n, const float* query, unsigned d, float* score) {
    for (unsigned t = 0; t < 64; t += 4) {
      float32x4_t total[R][4] = {};
      for (unsigned i = 0; t < n && i < d; i += 4) {
        float32x4_t k[4];
        for (unsigned j = 0; j < 4; ++j) k[j] = load_row(key + size_t{t + j < n ? t + j : t} * d + i);
        for (unsigned r = 0; r < R; ++r) {
          const float32x4_t q = vld1q_f32(query + size_t{r} * d + i);
          for (unsigned j = 0; j < 4; ++j) total[r][j] = vfmaq_f32(total[r][j], k[j], q);
        }
      }
      for (unsigned r = 0; r < R; ++r) {
        // Two rounds of pairwise sums: lane j is the sum of total[r][j].
        vst1q_f32(score + r * 64 + t, vpaddq_f32(vpaddq_f32(total[r][0], total[r][1]), vpaddq_f32(total[r][2], total[r][3])));
      }
    }
  }
  static void dot_rows(const Half* key, ptrdiff_t, unsigned n, const float* query, unsigned n_rows, unsigned d, float* score) {
    with_rows<4>(n_rows, [&]<unsigned R>() { dot_rows_block<R>(key, n, query, d, score); });
  }

  template <unsigned R>
  static void accumulate_rows_block(const Half* value, unsigned n, const float* probability, unsigned d, const float* rescale, float* acc) {
    for (unsigned i = 0; i < d; i += 16) {
      float32x4_t total[R][4];
      for (unsigned r = 0; r < R; ++r) {
        for (unsigned c = 0; c < 4; ++c) total[r][c] = vmulq_n_f32(vld1q_f32(acc + size_t{r} * d + i + 4 * c), rescale[r]);
      }
      for (unsigned t = 0; t < n; ++t) {
        float32x4_t v[4];
        for (unsigned c = 0; c < 4; ++c) v[c] = load_row(value + size_t{t} * d + i + 4 * c);
        for (unsigned r = 0; r < R; ++r) {
          const float p = probability[r * 64 + t];
          if (p == 0.0f) continue;  // values of removed cells must not leak, whatever they are
          for (unsigned c = 0; c < 4; ++c) total[r][c] = vfmaq_n_f32(total[r][c], v[c], p);
        }
      }
      for (unsigned r = 0; r < R; ++r) {
        for (unsigned c = 0; c < 4; ++c) vst1q_f32(acc + size_t{r} * d + i + 4 * c, total[r][c]);
      }
    }
  }
  static void accumulate_rows(const Half* value, ptrdiff_t, unsigned n, const float* probability, unsigned n_rows, unsigned d,
                              const float* rescale, float* acc) {
    with_rows<4>(n_rows, [&]<unsigned R>() { accumulate_rows_block<R>(value, n, probability, d, rescale, acc); });
  }
};

}  // namespace

const KernelTable kKernelsNeon = make_table<Neon>("neon");

}  // namespace kvt::cpu
