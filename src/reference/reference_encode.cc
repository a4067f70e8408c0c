// format.md section 5, step by step.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/half.h"
#include "reference/reference.h"

namespace kvt::reference {
namespace {

void store_half(uint8_t* dst, uint16_t h) {
  dst[0] = static_cast<uint8_t>(h);
  dst[1] = static_cast<uint8_t>(h >> 8);
}

uint16_t stored_norm(float n) { return float_to_half(n < kHalfMax ? n : kHalfMax); }

// Section 5, step 4, uniform levels: the largest coordinate gets the largest level.
void encode_uniform(const SideLayout& layout, const float* y, uint8_t* codes, float* yq) {
  float largest = 0;
  for (unsigned i = 0; i < layout.head_dim; ++i) largest = std::max(largest, std::fabs(y[i]));
  const float scale = static_cast<float>(kUniform7Largest) / largest;
  for (unsigned i = 0; i < layout.head_dim; ++i) {
    const float level = std::nearbyint(y[i] * scale);
    codes[i] = static_cast<uint8_t>(static_cast<int>(level) + 64);
    yq[i] = layout.table->step * level;
  }
}

// Trellis codes of y times each scale; those whose levels point closest to y are kept, the first of equals.
void encode_best_scale(const SideLayout& layout, const float* y, uint8_t* codes, float* yq) {
  const unsigned d = layout.head_dim;
  float best = -1;
  for (unsigned i = 0; i < kTrellisScales; ++i) {
    float scaled[kMaxHeadDim], tried_yq[kMaxHeadDim];
    uint8_t tried[kMaxHeadDim];
    for (unsigned j = 0; j < d; ++j) scaled[j] = layout.scales[i] * y[j];
    encode_trellis(layout, scaled, tried, tried_yq);
    const float along = ordered_dot(y, tried_yq, d), merit = along * along / ordered_dot(tried_yq, tried_yq, d);
    if (merit <= best) continue;
    best = merit;
    std::copy(tried, tried + d, codes);
    std::copy(tried_yq, tried_yq + d, yq);
  }
}

void encode_scalar(const SideLayout& layout, const float* y, uint8_t* codes, float* yq) {
  const LevelTable& table = *layout.table;
  for (unsigned i = 0; i < layout.head_dim; ++i) {
    codes[i] = 0;
    for (unsigned j = 0; j + 1 < table.n_levels(); ++j)
      codes[i] = static_cast<uint8_t>(codes[i] + (y[i] > table.thresholds[j]));
    yq[i] = table.step * static_cast<float>(table.levels[codes[i]]);
  }
}

void encode_f16(const SideLayout& layout, const float* x, uint8_t* page, unsigned slot) {
  uint8_t* row = page + size_t{slot} * layout.head_dim * 2;
  for (unsigned i = 0; i < layout.head_dim; ++i) store_half(row + 2 * i, float_to_half(x[i]));
}

}  // namespace

void encode_row(const SideLayout& layout, const float* x, uint8_t* page, unsigned slot) {
  if (layout.codec == KVT_CODEC_F16) return encode_f16(layout, x, page, slot);
  const unsigned d = layout.head_dim;
  const float root_d = std::sqrt(static_cast<float>(d));

  const float n = std::sqrt(ordered_dot(x, x, d));  // step 1
  uint8_t codes[kMaxHeadDim] = {};
  uint16_t norm = 0, residual = 0;
  if (!std::isfinite(n)) {  // step 2; a value that is not finite, or a sum that overflowed
    norm = residual = kHalfNan;
  } else if (n > 0) {
    float y[kMaxHeadDim], yq[kMaxHeadDim];
    std::memcpy(y, x, d * sizeof(float));
    rotate_forward(kSignsRotation, d, y);  // step 3
    const float inverse = 1.0f / n;
    for (unsigned i = 0; i < d; ++i) y[i] *= inverse;
    if (layout.table->trellis) {  // step 4
      layout.scales != nullptr ? encode_best_scale(layout, y, codes, yq) : encode_trellis(layout, y, codes, yq);
    } else {
      layout.code_bits == 8 ? encode_uniform(layout, y, codes, yq) : encode_scalar(layout, y, codes, yq);
    }
    if (layout.codec == KVT_CODEC_HYBRID) {  // step 5
      norm = stored_norm(n);
    } else if (layout.side == KVT_KEY) {
      norm = stored_norm(n * (ordered_dot(y, y, d) / ordered_dot(y, yq, d)));
    } else {
      norm = stored_norm(n * (ordered_dot(y, yq, d) / ordered_dot(yq, yq, d)));
    }
    if (layout.has_residual) {
      float e[kMaxHeadDim];
      for (unsigned i = 0; i < d; ++i) e[i] = y[i] - yq[i];
      residual = stored_norm((n * std::sqrt(ordered_dot(e, e, d))) * (1.0f / root_d));
      rotate_forward(kSignsSketch, d, e);
      for (unsigned i = 0; i < d; ++i) codes[i] = static_cast<uint8_t>(codes[i] | (e[i] < 0) << 3);
    }
  }
  store_half(page + layout.norm_offset + 2 * size_t{slot}, norm);
  if (layout.has_residual) store_half(page + layout.residual_offset + 2 * size_t{slot}, residual);
  write_codes(layout, codes, page, slot);
}

}  // namespace kvt::reference
