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

bool is_zero(const uint8_t* bytes, size_t n, uint8_t mask) {
  uint8_t seen = 0;
  for (size_t i = 0; i < n; ++i) seen = static_cast<uint8_t>(seen | bytes[i]);
  return (seen & mask) == 0;
}

// Bit 7 of 8-bit codes; what the stored rest lines of 2- and 3-bit codes leave unused.
bool has_reserved_bits_zero(const SideLayout& layout, const uint8_t* page) {
  if (layout.code_bits == 8) return is_zero(page, layout.norm_offset, 0x80);
  if (layout.code_bits == 4) return true;
  const bool key = layout.side == KVT_KEY;
  const KeyPlanes keys(layout.head_dim, layout.code_bits);
  const ValuePlanes values(layout.head_dim, layout.code_bits);
  const unsigned rest = key ? keys.rest : values.rest;
  const size_t line_bytes = key ? 64 : 256, part_bytes = key ? keys.tile_bytes() : values.group_bytes();
  // Three bits: every rest line. Two bits: a last one without a partner.
  const unsigned n_lines = layout.code_bits == 3 ? rest : rest % 2;
  const uint8_t mask = layout.code_bits == 3 ? 0x88 : 0xcc;
  for (size_t end = part_bytes; end <= layout.norm_offset; end += part_bytes) {
    if (!is_zero(page + end - n_lines * line_bytes, n_lines * line_bytes, mask)) return false;
  }
  return true;
}

}  // namespace

bool is_valid_page(const SideLayout& layout, const uint8_t* page) {
  if (layout.codec == KVT_CODEC_F16) return all_finite(page, layout.page_bytes / 2, true);
  if (!all_finite(page + layout.norm_offset, kPageTokens, false)) return false;
  if (layout.has_residual && !all_finite(page + layout.residual_offset, kPageTokens, false)) return false;
  return has_reserved_bits_zero(layout, page);
}

}  // namespace kvt
