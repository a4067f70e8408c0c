#include "research_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <random>
#include <vector>

#include "cpu/kernel_table.h"
#include "reference/reference.h"
#include "xor_window.h"

namespace kvt::research {
namespace {

// algorithm.md 5. kMiddle: half-way between least squares and matched.
enum class Norm { kRaw, kLeast, kMiddle, kMatched };

float norm_factor(Norm rule, unsigned d, const float* y, const EncodedRow& row) {
  float quantised[kMaxHeadDim];
  for (unsigned i = 0; i < d; ++i) quantised[i] = row.step * static_cast<float>(row.levels[i]);
  const float along = reference::ordered_dot(y, quantised, d);
  const float least = along / reference::ordered_dot(quantised, quantised, d), matched = static_cast<float>(d) / along;
  return rule == Norm::kRaw ? 1.0f : rule == Norm::kLeast ? least : rule == Norm::kMatched ? matched : (least + matched) / 2;
}

// ---- codes of the product

template <kvt_codec_id kCodec>
void decode_product(kvt_side side, unsigned d, const uint8_t* codes, int8_t* levels) {
  const SideLayout layout = make_side_layout(kCodec, side, d);
  uint8_t index[kMaxHeadDim];
  reference::level_indices(layout, codes, index);
  for (unsigned i = 0; i < d; ++i) levels[i] = layout.table->levels[index[i]];
}

template <kvt_codec_id kCodec, Norm kNorm>
float encode_product(kvt_side side, unsigned d, const float* y, EncodedRow* row) {
  const SideLayout layout = make_side_layout(kCodec, side, d);
  float x[kMaxHeadDim];
  std::copy(y, y + d, x);
  reference::rotate_backward(kSignsRotation, d, x);  // what the encoder rotates
  thread_local std::vector<uint8_t> page;
  page.assign(layout.page_bytes, 0);
  cpu::kKernelsAvx2.encode_row(layout, x, page.data(), 0);
  reference::read_codes(layout, page.data(), 0, row->codes);
  decode_product<kCodec>(side, d, row->codes, row->levels);
  row->step = layout.table->step;
  return norm_factor(kNorm, d, y, *row);
}

template <kvt_codec_id kCodec, Norm kNorm>
constexpr SideCode kProduct = {encode_product<kCodec, kNorm>, decode_product<kCodec>};

// ---- 9-bit XOR windows

// Scales: as the product has them for codes of these bits, or one search.
template <const XorCode& kCode, bool kScales, Norm kNorm>
float encode_window(kvt_side side, unsigned d, const float* y, EncodedRow* row) {
  constexpr std::array<float, 1> kOne = {1.0f};
  const auto search = [&](const auto& scales) {
    float best = -1;
    for (const float scale : scales) {
      float scaled[kMaxHeadDim] = {};
      EncodedRow tried;
      for (unsigned i = 0; i < d; ++i) scaled[i] = scale * y[i];
      encode_xor(kCode, side, d, scaled, Ends::kCircular, tried.codes, tried.levels);
      tried.step = kCode.step;
      const float merit = norm_factor(Norm::kLeast, d, y, tried) / norm_factor(Norm::kMatched, d, y, tried);
      if (merit <= best) continue;
      best = merit;
      *row = tried;
    }
  };
  if constexpr (!kScales) {
    search(kOne);
  } else if (kCode.bits == 3) {
    search(kTrellis3Scales);
  } else {
    search(kTrellis4Scales);
  }
  return norm_factor(kNorm, d, y, *row);
}

template <const XorCode& kCode>
void decode_window(kvt_side side, unsigned d, const uint8_t* codes, int8_t* levels) {
  decode_xor(kCode, side, d, codes, levels);
}

template <const XorCode& kCode, bool kScales, Norm kNorm>
constexpr SideCode kWindow = {encode_window<kCode, kScales, kNorm>, decode_window<kCode>};

// ---- keys of `hybrid` with other sketches

enum class Sketch {
  kHadamard,  // the product's
  kGaussian,  // QJL: rows of independent Gaussians
  kBroken     // that of several ports: signs turned by S instead of its transpose, with the scale of a Gaussian S
};

const std::vector<float>& gaussian_matrix(unsigned d) {
  thread_local std::vector<float> entries;
  if (entries.size() != size_t{d} * d) {
    std::mt19937_64 random(d);
    std::normal_distribution<float> normal;
    entries.resize(size_t{d} * d);
    std::generate(entries.begin(), entries.end(), [&] { return normal(random); });
  }
  return entries;
}

// The estimate of a residual e, from its norm and d signs.
void sketch_residual(Sketch sketch, unsigned d, const float* e, float* estimate) {
  float signs[kMaxHeadDim];
  const float scale = std::sqrt(reference::ordered_dot(e, e, d) * std::numbers::pi_v<float> / 2) / static_cast<float>(d);
  std::fill(estimate, estimate + d, 0.0f);
  if (sketch == Sketch::kGaussian) {
    const float* row = gaussian_matrix(d).data();
    for (unsigned r = 0; r < d; ++r, row += d) {
      const float sign = reference::ordered_dot(row, e, d) < 0 ? -1.0f : 1.0f;
      for (unsigned i = 0; i < d; ++i) estimate[i] += scale * sign * row[i];
    }
    return;
  }
  std::copy(e, e + d, signs);
  reference::rotate_forward(kSignsSketch, d, signs);
  for (unsigned i = 0; i < d; ++i) signs[i] = signs[i] < 0 ? -1.0f : 1.0f;
  const float root = sketch == Sketch::kBroken ? std::sqrt(static_cast<float>(d)) : 1.0f;
  sketch == Sketch::kBroken ? reference::rotate_forward(kSignsSketch, d, signs)
                            : reference::rotate_backward(kSignsSketch, d, signs);
  for (unsigned i = 0; i < d; ++i) estimate[i] = scale / root * signs[i];
}

// The sum of both stages is no multiple of small integers: it is rounded to 127 steps, which adds 0.0002 to errors of 0.019 and
// more.
template <Sketch kSketch>
float encode_sketch(kvt_side, unsigned d, const float* y, EncodedRow* row) {
  encode_product<KVT_CODEC_SCALAR43, Norm::kRaw>(KVT_VALUE, d, y, row);  // three bits
  float e[kMaxHeadDim], estimate[kMaxHeadDim], largest = 0;
  for (unsigned i = 0; i < d; ++i) e[i] = y[i] - row->step * static_cast<float>(row->levels[i]);
  sketch_residual(kSketch, d, e, estimate);
  for (unsigned i = 0; i < d; ++i) {
    estimate[i] += y[i] - e[i];
    largest = std::max(largest, std::fabs(estimate[i]));
  }
  row->step = largest / 63;
  for (unsigned i = 0; i < d; ++i) row->levels[i] = static_cast<int8_t>(std::lround(estimate[i] / row->step));
  return 1;
}

template <Sketch kSketch>
constexpr SideCode kSketched = {encode_sketch<kSketch>, nullptr};

// ---- by name

constexpr SideCode kKey4 = kProduct<KVT_CODEC_K4V3, Norm::kMatched>, kValue3 = kProduct<KVT_CODEC_K4V3, Norm::kLeast>;
constexpr SideCode kKey4Window = kWindow<kXor4, false, Norm::kMatched>, kValue3Window = kWindow<kXor3, false, Norm::kLeast>;
constexpr SideCode kValue2 = kProduct<KVT_CODEC_K2V2, Norm::kLeast>, kValueScalar = kProduct<KVT_CODEC_HYBRID, Norm::kRaw>;

constexpr ResearchCode kCodes[] = {
    {"k4v3", kKey4, kValue3},
    {"x4v3", kKey4Window, kValue3},
    {"k4x3", kKey4, kValue3Window},
    {"x4x3", kKey4Window, kValue3Window},
    {"k3v3", kProduct<KVT_CODEC_K3V3, Norm::kMatched>, kProduct<KVT_CODEC_K3V3, Norm::kLeast>},
    {"x3x3", kWindow<kXor3, true, Norm::kMatched>, kWindow<kXor3, true, Norm::kLeast>},
    {"k2v2", kProduct<KVT_CODEC_K2V2, Norm::kMatched>, kValue2},
    {"k2v2-middle", kProduct<KVT_CODEC_K2V2, Norm::kMiddle>, kValue2},
    {"k2v2-least", kProduct<KVT_CODEC_K2V2, Norm::kLeast>, kValue2},
    {"hybrid", kSketched<Sketch::kHadamard>, kValueScalar},
    {"hybrid-gaussian", kSketched<Sketch::kGaussian>, kValueScalar},
    {"hybrid-broken", kSketched<Sketch::kBroken>, kValueScalar},
};

}  // namespace

const ResearchCode* find_research_code(const char* name) {
  for (const ResearchCode& code : kCodes) {
    if (std::strcmp(code.name, name) == 0) return &code;
  }
  return nullptr;
}

}  // namespace kvt::research
