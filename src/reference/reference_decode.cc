// format.md sections 2 and 4.
#include <cmath>
#include <numbers>

#include "format/half.h"
#include "reference/reference.h"

namespace kvt::reference {
namespace {

float load_half(const uint8_t* p) { return half_to_float(static_cast<uint16_t>(p[0] | p[1] << 8)); }

unsigned read_key_nibble(const uint8_t* page, unsigned d, unsigned slot, unsigned dim) {
  return page[key_code_offset(d, slot, dim / 8, dim % 4)] >> (dim % 8 / 4 * 4) & 0xfu;
}

unsigned read_value_code(const uint8_t* page, unsigned d, unsigned slot, unsigned dim) {
  const ValuePlanes planes(d);
  const ValueSlot at(slot);
  const uint8_t* group = page + at.group * planes.group_bytes() + at.offset;
  auto nibble = [&](size_t line, unsigned w) { return group[line + size_t{4} * w] >> at.shift & 0xfu; };
  const unsigned h = dim / 64, k = dim % 64 / 16, w = dim % 16;
  if (h == planes.blocks) return nibble(planes.rest_line(k), w) & 7u;
  if (k < 3) return nibble(planes.line(k, h), w) & 7u;
  unsigned code = 0;
  for (unsigned bit = 0; bit < 3; ++bit) code |= (nibble(planes.line(bit, h), w) >> 3) << bit;
  return code;
}

}  // namespace

void read_codes(const SideLayout& layout, const uint8_t* page, unsigned slot, uint8_t* codes) {
  const unsigned d = layout.head_dim;
  for (unsigned i = 0; i < d; ++i) {
    codes[i] = static_cast<uint8_t>(layout.side == KVT_KEY ? read_key_nibble(page, d, slot, i) : read_value_code(page, d, slot, i));
  }
}

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
