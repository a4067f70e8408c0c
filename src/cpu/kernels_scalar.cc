// Plain C++: the truth that the vector kernels are tested against, and the path of machines without them.
#include "cpu/attend_loop.h"
#include "cpu/unpack_plain.h"
#include "reference/reference.h"

namespace kvt::cpu {
namespace {

struct Scalar {
  static constexpr unsigned kDirectRows = 0;
  static constexpr unsigned kRegisterBytes = 0;  // none: unpack_plain reads every packing
  static void dot_page(const SideLayout&, const uint8_t*, const uint8_t*, const int8_t*, const int8_t*, unsigned, int32_t*, int32_t*) {}
  static void accumulate_page(const SideLayout&, const uint8_t*, const uint8_t*, const uint8_t*, unsigned, const float*, const float*, float*) {}

  static void encode_row(const SideLayout& layout, const float* x, uint8_t* page, unsigned slot) {
    reference::encode_row(layout, x, page, slot);
  }
  static void floats_to_halves(const float* from, size_t n, uint8_t* to) {
    for (size_t i = 0; i < n; ++i) {
      const uint16_t h = float_to_half(from[i]);
      to[2 * i] = static_cast<uint8_t>(h);
      to[2 * i + 1] = static_cast<uint8_t>(h >> 8);
    }
  }

  static void rotate_forward(const SignTable& signs, unsigned d, float* v) { reference::rotate_forward(signs, d, v); }
  static void rotate_backward(const SignTable& signs, unsigned d, float* v) { reference::rotate_backward(signs, d, v); }
  static void prefetch_page(const uint8_t*, size_t) {}

  static bool load_mask(const uint8_t* from, unsigned n, float* to) {
    bool any = false;
    for (unsigned t = 0; t < 64; ++t) {
      to[t] = t < n ? half_to_float(static_cast<uint16_t>(from[2 * t] | from[2 * t + 1] << 8)) : kMinusInfinity;
      any = any || to[t] != kMinusInfinity;
    }
    return any;
  }

  static void unpack_keys(const SideLayout& layout, const uint8_t*, const uint8_t* page, uint8_t* key, uint8_t* sign) {
    unpack_keys_plain(layout, page, key, sign);
  }

  static void dot_keys(const uint8_t* key, const int8_t* query, unsigned n_rows, unsigned d, int32_t* sum) {
    for (unsigned row = 0; row < n_rows; ++row) {
      for (unsigned t = 0; t < 64; ++t) {
        int32_t total = 0;
        for (unsigned i = 0; i < d; ++i) total += key[(size_t{t / 16} * d / 4 + i / 4) * 64 + t % 16 * 4 + i % 4] * query[size_t{row} * d + i];
        sum[row * 64 + t] = total;
      }
    }
  }
  static void dot_signs(const uint8_t* sign, const int8_t* query, unsigned n_rows, unsigned d, int32_t* sum) {
    dot_keys(sign, query, n_rows, d, sum);
  }

  static void scale_scores(const int32_t* sum, int32_t offset, float factor, const float* norm, float* score) {
    for (unsigned t = 0; t < 64; ++t) score[t] = factor * norm[t] * static_cast<float>(sum[t] - offset);
  }
  // sum counts the negative signs; sum of s * q = total - 2 * that.
  static void add_sketch(const int32_t* sum, int32_t total, float factor, const float* residual, float* score) {
    for (unsigned t = 0; t < 64; ++t) score[t] += factor * residual[t] * static_cast<float>(total - 2 * sum[t]);
  }
  // Masks in place; returns the maximum of row_max and all scores. A NaN score is passed over.
  static float mask_scores(const float* mask, float slope, float row_max, float* score) {
    float largest = row_max;
    for (unsigned t = 0; t < 64; ++t) {
      score[t] = mask[t] == kMinusInfinity ? kMinusInfinity : score[t] + slope * mask[t];
      largest = score[t] > largest ? score[t] : largest;
    }
    return largest;
  }
  static float exp_one(float x) { return std::exp(x); }
  // probability[t] = exp(score - shift), 0 for -inf; returns the sum.
  static float exp_scores(const float* score, float shift, float* probability) {
    float total = 0;
    for (unsigned t = 0; t < 64; ++t) {
      probability[t] = std::exp(score[t] - shift);
      total += probability[t];
    }
    return total;
  }

  // weight = round(probability * norm / unit), unit = largest / 127. Returns unit.
  static float quantise_weights(const float* probability, const float* norm, uint8_t* weight) {
    float product[64], largest = 0;
    for (unsigned t = 0; t < 64; ++t) {
      product[t] = probability[t] == 0.0f ? 0.0f : probability[t] * norm[t];
      largest = product[t] > largest ? product[t] : largest;
    }
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    float poison = 0;
    for (unsigned t = 0; t < 64; ++t) {
      poison += product[t] * 0.0f;
      const float scaled = std::nearbyint(product[t] * inverse);
      weight[t] = static_cast<uint8_t>(scaled >= 0 && scaled <= 127 ? scaled : 0);
    }
    return largest / 127.0f + poison;
  }

  static void unpack_values(const SideLayout& layout, const uint8_t*, const uint8_t* page, int8_t* value) { unpack_values_plain(layout, page, value); }

  // |sum over 64 tokens of weight * level| <= 64 * 127 * 62: exact in int32.
  static void accumulate_values(const int8_t* value, const uint8_t* weight, unsigned n_rows, unsigned d, const float* rescale,
                                const float* unit, float* acc) {
    for (unsigned row = 0; row < n_rows; ++row) {
      for (unsigned i = 0; i < d; ++i) {
        int32_t total = 0;
        for (unsigned t = 0; t < 64; ++t) total += weight[row * 64 + t] * value[(size_t{t / 4} * d + i) * 4 + t % 4];
        float& a = acc[size_t{row} * d + i];
        a = a * rescale[row] + unit[row] * static_cast<float>(total);
      }
    }
  }

  static void halves_to_floats(const uint8_t* from, size_t n, float* to) {
    for (size_t i = 0; i < n; ++i) to[i] = half_to_float(static_cast<uint16_t>(from[2 * i] | from[2 * i + 1] << 8));
  }
  static float value_of(Half x) { return half_to_float(static_cast<uint16_t>(x.bytes[0] | x.bytes[1] << 8)); }

  static void dot_rows(const Half* key, ptrdiff_t, unsigned n, const float* query, unsigned n_rows, unsigned d, float* score) {
    for (unsigned row = 0; row < n_rows; ++row) {
      for (unsigned t = 0; t < 64; ++t) {
        float total = 0;
        for (unsigned i = 0; t < n && i < d; ++i) total += value_of(key[size_t{t} * d + i]) * query[size_t{row} * d + i];
        score[row * 64 + t] = total;
      }
    }
  }
  static void accumulate_rows(const Half* value, ptrdiff_t, unsigned n, const float* probability, unsigned n_rows, unsigned d,
                              const float* rescale, float* acc) {
    for (unsigned row = 0; row < n_rows; ++row) {
      float* a = acc + size_t{row} * d;
      for (unsigned i = 0; i < d; ++i) a[i] *= rescale[row];
      for (unsigned t = 0; t < n; ++t) {
        const float p = probability[row * 64 + t];
        if (p == 0.0f) continue;  // a removed cell, whatever its value
        for (unsigned i = 0; i < d; ++i) a[i] += p * value_of(value[size_t{t} * d + i]);
      }
    }
  }
};

}  // namespace

size_t attend_scratch_bytes(const SideLayout& key, const SideLayout& value) {
  ScratchArena arena(nullptr);
  SoftmaxScratch soft(arena);
  HalfScratch half(arena, key.head_dim, value.head_dim);
  if (key.codec != KVT_CODEC_F16) {
    CodeScratch code(arena, key.head_dim, value.head_dim);
    WindowScratch window(arena);
  }
  return arena.used();
}

const KernelTable kKernelsScalar = make_table<Scalar>("scalar");

}  // namespace kvt::cpu
