// Encoder and rotation in vectors of N floats: the bytes of reference::encode_row for any N, since each fp32 operation happens
// on the same operands in the same order (format.md section 5); only lanes run side by side. Included by kernels_<isa>.cc;
// internal linkage for the reason given in attend_loop.h. Uses the GCC/clang vector extensions, so one text serves every
// instruction set.
#ifndef KVT_CPU_ENCODE_VECTOR_H
#define KVT_CPU_ENCODE_VECTOR_H

#include <cmath>
#include <cstring>
#include <utility>

#include "cpu/trellis_vector.h"
#include "cpu/write_codes.h"
#include "format/half.h"
#include "format/page_layout.h"
#include "format/rotation_tables.h"

namespace kvt::cpu {
namespace {

template <unsigned N>
struct VectorOf {
  typedef float F __attribute__((vector_size(N * sizeof(float))));
  typedef int32_t I __attribute__((vector_size(N * sizeof(int32_t))));
};

struct SignMasks {
  alignas(64) uint32_t bits[kMaxHeadDim];  // the fp32 sign bit where a coordinate is negated
  constexpr explicit SignMasks(const SignTable& signs) : bits{} {
    for (unsigned i = 0; i < kMaxHeadDim; ++i) bits[i] = sign_bit(signs, i) ? 0x80000000u : 0u;
  }
};
constexpr SignMasks kMasksRotation(kSignsRotation);
constexpr SignMasks kMasksSketch(kSignsSketch);
inline const SignMasks& masks_of(const SignTable& signs) { return &signs == &kSignsSketch ? kMasksSketch : kMasksRotation; }

template <unsigned N>
class VectorCoder {
  using F = typename VectorOf<N>::F;
  using I = typename VectorOf<N>::I;
  static constexpr unsigned kMaxVectors = kMaxHeadDim / N;
  using Lanes = std::make_index_sequence<N>;

 public:
  static void rotate_forward(const SignTable& signs, unsigned d, float* v) {
    F x[kMaxVectors];
    read_row(v, d, x);
    flip(masks_of(signs), d, x);
    transform(d, x);
    write_row(x, d, v);
  }
  static void rotate_backward(const SignTable& signs, unsigned d, float* v) {
    F x[kMaxVectors];
    read_row(v, d, x);
    transform(d, x);
    flip(masks_of(signs), d, x);
    write_row(x, d, v);
  }

  static void floats_to_halves(const float* from, size_t n, uint8_t* to) {
    for (size_t i = 0; i < n; i += N) {
      I bits;
      std::memcpy(&bits, from + i, sizeof bits);
      const I nan = (bits & 0x7fffffff) > 0x7f800000;  // hardware keeps a NaN's payload, format/half.h does not
      store_halves(reinterpret_cast<F>(nan ? (bits & static_cast<int32_t>(0x80000000u)) | 0x7fc00000 : bits), to + 2 * i);
    }
  }

  static void encode_row(const SideLayout& layout, const float* x, uint8_t* page, unsigned slot) {
    if (layout.codec == KVT_CODEC_F16) return encode_f16(layout, x, page, slot);
    encode(layout, *layout.table, x, page, slot);
  }

 private:
  static void read_row(const float* from, unsigned d, F* to) { std::memcpy(to, from, d * sizeof(float)); }
  static void write_row(const F* from, unsigned d, float* to) { std::memcpy(to, from, d * sizeof(float)); }

  static void flip(const SignMasks& masks, unsigned d, F* x) {
    for (unsigned i = 0; i < d / N; ++i) {
      I bits;
      std::memcpy(&bits, masks.bits + i * N, sizeof bits);
      x[i] = reinterpret_cast<F>(reinterpret_cast<I>(x[i]) ^ bits);
    }
  }

  // Lanes l and l ^ Distance -> (a + b, a - b); the second as b' + (-a') with the lanes exchanged, which rounds alike.
  template <unsigned Distance, size_t... L>
  static F butterfly(F x, std::index_sequence<L...>) {
    const F exchanged = __builtin_shufflevector(x, x, static_cast<int>(L ^ Distance)...);
    const I negate = {((L & Distance) ? static_cast<int32_t>(0x80000000u) : 0)...};
    return exchanged + reinterpret_cast<F>(reinterpret_cast<I>(x) ^ negate);
  }
  template <unsigned Distance, size_t... L>
  static F add_at_distance(F x, std::index_sequence<L...>) {
    return x + __builtin_shufflevector(x, x, static_cast<int>((L + Distance) % N)...);
  }

  static void transform(unsigned d, F* x) {
    const unsigned p = power_of_two_part(d), m = d / p, n = d / N;
    for (unsigned i = 0; i < n; ++i) {
      F v = butterfly<1>(x[i], Lanes{});
      v = butterfly<2>(v, Lanes{});
      if constexpr (N > 4) v = butterfly<4>(v, Lanes{});
      if constexpr (N > 8) v = butterfly<8>(v, Lanes{});
      x[i] = v;
    }
    for (unsigned distance = 1; distance < p / N; distance *= 2) {
      for (unsigned base = 0; base < n; base += 2 * distance) {
        for (unsigned i = base; i < base + distance; ++i) {
          const F a = x[i], b = x[i + distance];
          x[i] = a + b;
          x[i + distance] = a - b;
        }
      }
    }
    if (m > 1) hartley(m, p / N, x);
  }

  static void hartley(unsigned m, unsigned run, F* x) {
    const float* entries = hartley_entries(m);
    for (unsigned b = 0; b < run; ++b) {
      F column[7];
      for (unsigned a = 0; a < m; ++a) column[a] = x[a * run + b];
      for (unsigned a = 0; a < m; ++a) {
        F sum = column[0];
        for (unsigned k = 1; k < m; ++k) sum += entries[a * k % m] * column[k];
        x[a * run + b] = sum;
      }
    }
  }

  static float ordered_dot(const F* a, const F* b, unsigned d) {
    F lane[16 / N] = {};
    for (unsigned i = 0; i < d / N; ++i) lane[i % (16 / N)] += a[i] * b[i];
    if constexpr (N == 4) {
      lane[0] += lane[2];
      lane[1] += lane[3];
    }
    if constexpr (N <= 8) lane[0] += lane[1];
    F sum = lane[0];
    if constexpr (N > 8) sum = add_at_distance<8>(sum, Lanes{});
    if constexpr (N > 4) sum = add_at_distance<4>(sum, Lanes{});
    sum = add_at_distance<2>(sum, Lanes{});
    sum = add_at_distance<1>(sum, Lanes{});
    return sum[0];
  }

  // Little-endian, as all machines that use this file.
  static void store_half(uint8_t* to, uint16_t h) { std::memcpy(to, &h, sizeof h); }
  static uint16_t stored_norm(float n) { return float_to_half(n < kHalfMax ? n : kHalfMax); }

  // Codes of y and their values, by comparison with every threshold.
  template <unsigned kBits>
  static void quantise_scalar(const LevelTable& table, unsigned n_vectors, const F* y, uint8_t* codes, F* quantised) {
    for (unsigned i = 0; i < n_vectors; ++i) {
      I code = {}, level = I{} + table.levels[0];
      for (unsigned j = 0; j + 1 < (1u << kBits); ++j) {
        const I above = y[i] > F{} + table.thresholds[j];  // -1 where true
        code -= above;
        level += above & (table.levels[j + 1] - table.levels[j]);
      }
      narrow(code, codes + i * N);
      quantised[i] = table.step * __builtin_convertvector(level, F);
    }
  }
  template <unsigned kBits>
  static void quantise_trellis(const SideLayout& layout, const LevelTable& table, const F* y, uint8_t* codes, F* quantised) {
    SubsetChoices choices;
    for (unsigned i = 0; i < layout.head_dim / N; ++i) {
      for (unsigned z = 0; z < 4; ++z) {
        I m = {}, level = I{} + table.levels[z];
        for (unsigned j = 0; j + 1 < (1u << kBits) / 2; ++j) {
          const I above = y[i] > F{} + table.thresholds[z * kSubsetThresholds + j];
          m -= above;
          level += above & (table.levels[4 * j + 4 + z] - table.levels[4 * j + z]);
        }
        const F value = table.step * __builtin_convertvector(level, F), error = y[i] - value, cost = error * error;
        narrow(m, choices.m[z] + i * N);
        std::memcpy(choices.quantised[z] + i * N, &value, sizeof value);
        std::memcpy(choices.cost[z] + i * N, &cost, sizeof cost);
      }
    }
    const TrellisChains& chains = trellis_chains(layout.side, layout.head_dim);
    alignas(64) float values[kMaxHeadDim];
    search_vector<N == 16 ? 16 : 8>(table, chains, choices, codes, values);
    read_row(values, layout.head_dim, quantised);
  }
  static void quantise_trellis(const SideLayout& layout, const LevelTable& table, const F* y, uint8_t* codes, F* quantised) {
    switch (table.bits) {
      case 2:
        return quantise_trellis<2>(layout, table, y, codes, quantised);
      case 3:
        return quantise_trellis<3>(layout, table, y, codes, quantised);
      default:
        return quantise_trellis<4>(layout, table, y, codes, quantised);
    }
  }
  // The best of several scales (format.md section 5, step 4).
  static void quantise_best_scale(const SideLayout& layout, const LevelTable& table, const F* y, uint8_t* codes, F* quantised) {
    const unsigned d = layout.head_dim;
    float best = -1;
    for (unsigned i = 0; i < kTrellisScales; ++i) {
      F scaled[kMaxVectors], tried_quantised[kMaxVectors];
      alignas(64) uint8_t tried[kMaxHeadDim];
      for (unsigned j = 0; j < d / N; ++j) scaled[j] = layout.scales[i] * y[j];
      quantise_trellis(layout, table, scaled, tried, tried_quantised);
      const float along = ordered_dot(y, tried_quantised, d);
      const float merit = along * along / ordered_dot(tried_quantised, tried_quantised, d);
      if (merit <= best) continue;
      best = merit;
      std::memcpy(codes, tried, d);
      std::memcpy(quantised, tried_quantised, d * sizeof(float));
    }
  }
  static void quantise_uniform(const LevelTable& table, unsigned n_vectors, const F* y, uint8_t* codes, F* quantised) {
    F magnitudes = {};
    for (unsigned i = 0; i < n_vectors; ++i) {
      const F magnitude = reinterpret_cast<F>(reinterpret_cast<I>(y[i]) & 0x7fffffff);
      magnitudes = magnitude > magnitudes ? magnitude : magnitudes;
    }
    float largest = 0;
    for (unsigned l = 0; l < N; ++l) largest = magnitudes[l] > largest ? magnitudes[l] : largest;
    const float scale = static_cast<float>(kUniform7Largest) / largest;
    const F to_integer = F{} + 0x1.8p23f;  // added and subtracted: rounds to an integer, ties to even
    for (unsigned i = 0; i < n_vectors; ++i) {
      const F level = (y[i] * scale + to_integer) - to_integer;
      narrow(__builtin_convertvector(level, I) + 64, codes + i * N);
      quantised[i] = table.step * level;
    }
  }
  static void narrow(I code, uint8_t* to) {
    typedef uint8_t B __attribute__((vector_size(N)));
    const B bytes = __builtin_convertvector(code, B);
    std::memcpy(to, &bytes, N);
  }

  static void encode(const SideLayout& layout, const LevelTable& table, const float* row, uint8_t* page, unsigned slot) {
    const unsigned d = layout.head_dim, n_vectors = d / N;
    F x[kMaxVectors];
    alignas(64) uint8_t codes[kMaxHeadDim] = {};
    read_row(row, d, x);
    const float n = std::sqrt(ordered_dot(x, x, d));
    uint16_t norm = 0, residual = 0;
    if (!std::isfinite(n) || n == 0) {
      norm = residual = n == 0 ? 0 : kHalfNan;
    } else {
      F quantised[kMaxVectors];
      flip(kMasksRotation, d, x);
      transform(d, x);
      const float inverse = 1.0f / n;
      for (unsigned i = 0; i < n_vectors; ++i) x[i] *= inverse;
      if (layout.scales != nullptr) {
        quantise_best_scale(layout, table, x, codes, quantised);
      } else if (table.trellis) {
        quantise_trellis(layout, table, x, codes, quantised);
      } else if (layout.code_bits == 8) {
        quantise_uniform(table, n_vectors, x, codes, quantised);
      } else {
        table.bits == 3 ? quantise_scalar<3>(table, n_vectors, x, codes, quantised)
                        : quantise_scalar<4>(table, n_vectors, x, codes, quantised);
      }
      if (layout.codec == KVT_CODEC_HYBRID) {
        norm = stored_norm(n);
      } else if (layout.side == KVT_KEY) {
        norm = stored_norm(n * (ordered_dot(x, x, d) / ordered_dot(x, quantised, d)));
      } else {
        norm = stored_norm(n * (ordered_dot(x, quantised, d) / ordered_dot(quantised, quantised, d)));
      }
      if (layout.has_residual) {
        for (unsigned i = 0; i < n_vectors; ++i) x[i] = x[i] - quantised[i];
        residual = stored_norm((n * std::sqrt(ordered_dot(x, x, d))) * (1.0f / std::sqrt(static_cast<float>(d))));
        flip(kMasksSketch, d, x);
        transform(d, x);
        for (unsigned i = 0; i < n_vectors; ++i) {
          alignas(64) uint8_t signs[N];
          narrow((x[i] < F{}) & 8, signs);
          for (unsigned l = 0; l < N; ++l) codes[i * N + l] = static_cast<uint8_t>(codes[i * N + l] | signs[l]);
        }
      }
    }
    store_half(page + layout.norm_offset + 2 * size_t{slot}, norm);
    if (layout.has_residual) store_half(page + layout.residual_offset + 2 * size_t{slot}, residual);
    layout.side == KVT_KEY ? write_key_codes(layout, codes, page, slot) : write_value_codes(layout, codes, page, slot);
  }

  static void encode_f16(const SideLayout& layout, const float* x, uint8_t* page, unsigned slot) {
    floats_to_halves(x, layout.head_dim, page + size_t{slot} * layout.head_dim * 2);
  }
  static void store_halves(F x, uint8_t* to) {
#if defined(__AVX512F__)
    if constexpr (N == 16) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    if constexpr (N == 8) _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    if constexpr (N == 4) vst1_u8(to, vreinterpret_u8_f16(vcvt_f16_f32(x)));
#endif
  }
};

}  // namespace
}  // namespace kvt::cpu

#endif
