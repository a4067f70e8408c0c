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

void write_key_nibble(uint8_t* page, unsigned d, unsigned slot, unsigned dim, unsigned nibble) {
  uint8_t& byte = page[key_code_offset(d, slot, dim / 8, dim % 4)];
  const unsigned shift = dim % 8 / 4 * 4;
  byte = static_cast<uint8_t>((byte & ~(0xfu << shift)) | nibble << shift);
}

void write_key_codes(const SideLayout& layout, const uint8_t* codes, const uint8_t* signs, uint8_t* page, unsigned slot) {
  for (unsigned i = 0; i < layout.head_dim; ++i) {
    write_key_nibble(page, layout.head_dim, slot, i, codes[i] | (layout.has_residual ? signs[i] << 3 : 0));
  }
}

void write_value_codes(const SideLayout& layout, const uint8_t* codes, uint8_t* page, unsigned slot) {
  const ValuePlanes planes(layout.head_dim);
  const ValueSlot at(slot);
  uint8_t* group = page + at.group * planes.group_bytes() + at.offset;
  auto write = [&](size_t line, unsigned w, unsigned nibble) {
    uint8_t& byte = group[line + size_t{4} * w];
    byte = static_cast<uint8_t>((byte & ~(0xfu << at.shift)) | nibble << at.shift);
  };
  for (unsigned h = 0; h < planes.blocks; ++h) {
    for (unsigned k = 0; k < 3; ++k) {
      for (unsigned w = 0; w < 16; ++w) {
        const unsigned spread = codes[64 * h + 48 + w] >> k & 1u;
        write(planes.line(k, h), w, codes[64 * h + 16 * k + w] | spread << 3);
      }
    }
  }
  for (unsigned j = 0; j < planes.rest; ++j) {
    for (unsigned w = 0; w < 16; ++w) write(planes.rest_line(j), w, codes[64 * planes.blocks + 16 * j + w]);
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
  const LevelTable& table = *layout.table;
  const float root_d = std::sqrt(static_cast<float>(d));

  const float n = std::sqrt(ordered_dot(x, x, d));  // step 1
  uint8_t codes[kMaxHeadDim] = {}, signs[kMaxHeadDim] = {};
  uint16_t norm = 0, residual = 0;
  if (!std::isfinite(n)) {  // step 2; a value that is not finite, or a sum that overflowed
    norm = residual = kHalfNan;
  } else if (n > 0) {
    float y[kMaxHeadDim], yq[kMaxHeadDim];
    std::memcpy(y, x, d * sizeof(float));
    rotate_forward(kSignsRotation, d, y);  // step 3
    const float inverse = 1.0f / n;
    for (unsigned i = 0; i < d; ++i) y[i] *= inverse;
    if (table.trellis) {  // step 4
      encode_trellis(layout, y, codes, yq);
    } else {
      for (unsigned i = 0; i < d; ++i) {
        for (unsigned j = 0; j + 1 < table.n_levels(); ++j) codes[i] = static_cast<uint8_t>(codes[i] + (y[i] > table.thresholds[j]));
        yq[i] = table.step * static_cast<float>(table.levels[codes[i]]);
      }
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
      for (unsigned i = 0; i < d; ++i) signs[i] = e[i] < 0;
    }
  }
  store_half(page + layout.norm_offset + 2 * size_t{slot}, norm);
  if (layout.has_residual) store_half(page + layout.residual_offset + 2 * size_t{slot}, residual);
  if (layout.side == KVT_KEY) {
    write_key_codes(layout, codes, signs, page, slot);
  } else {
    write_value_codes(layout, codes, page, slot);
  }
}

}  // namespace kvt::reference
