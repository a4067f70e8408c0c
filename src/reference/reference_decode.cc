// format.md section 2.
#include <cmath>
#include <numbers>

#include "format/half.h"
#include "reference/reference.h"

namespace kvt::reference {
namespace {

float load_half(const uint8_t* p) { return half_to_float(static_cast<uint16_t>(p[0] | p[1] << 8)); }

}  // namespace

void decode_row(const SideLayout& layout, const uint8_t* page, unsigned slot, float* x) {
  const unsigned d = layout.head_dim;
  if (layout.codec == KVT_CODEC_F16) {
    const uint8_t* row = page + size_t{slot} * d * 2;
    for (unsigned i = 0; i < d; ++i) x[i] = load_half(row + 2 * i);
    return;
  }
  const float root_d = std::sqrt(static_cast<float>(d));
  const float norm = load_half(page + layout.norm_offset + 2 * size_t{slot});
  uint8_t codes[kMaxHeadDim] = {}, index[kMaxHeadDim] = {};
  read_codes(layout, page, slot, codes);
  level_indices(layout, codes, index);
  for (unsigned i = 0; i < d; ++i) {
    x[i] = norm / root_d * (layout.table->step * static_cast<float>(layout.table->levels[index[i]]));
  }
  if (layout.has_residual) {
    const float residual = load_half(page + layout.residual_offset + 2 * size_t{slot});
    float sketch[kMaxHeadDim];
    for (unsigned i = 0; i < d; ++i) sketch[i] = codes[i] & 8u ? -1.0f : 1.0f;
    rotate_backward(kSignsSketch, d, sketch);  // sqrt(d) * S^T s
    const float scale = residual * std::sqrt(std::numbers::pi_v<float> / 2) / static_cast<float>(d);
    for (unsigned i = 0; i < d; ++i) x[i] += scale * sketch[i];
  }
  rotate_backward(kSignsRotation, d, x);
  for (unsigned i = 0; i < d; ++i) x[i] /= root_d;
}

}  // namespace kvt::reference
