#include "format/page_validation.h"

namespace kvt {
namespace {

uint16_t load_half(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }

bool all_finite(const uint8_t* halves, size_t n, bool allow_negative) {
  for (size_t i = 0; i < n; ++i) {
    const uint16_t h = load_half(halves + 2 * i);
    if ((h & 0x7c00) == 0x7c00 || (!allow_negative && (h & 0x8000))) return false;
  }
  return true;
}

}  // namespace

bool is_valid_page(const SideLayout& layout, const uint8_t* page) {
  if (layout.codec == KVT_CODEC_F16) return all_finite(page, layout.page_bytes / 2, true);
  if (!all_finite(page + layout.norm_offset, kPageTokens, false)) return false;
  if (layout.has_residual && !all_finite(page + layout.residual_offset, kPageTokens, false)) return false;
  if (layout.side == KVT_VALUE) {
    const ValuePlanes planes(layout.head_dim);
    for (size_t group = 0; group < 2; ++group) {
      const uint8_t* rest = page + group * planes.group_bytes() + planes.rest_line(0);
      for (size_t i = 0; i < size_t{planes.rest} * 256; ++i) {
        if (rest[i] & 0x88) return false;
      }
    }
  }
  return true;
}

}  // namespace kvt
