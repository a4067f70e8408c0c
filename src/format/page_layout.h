// Where things lie in a page (format.md sections 1 and 4).
#ifndef KVT_FORMAT_PAGE_LAYOUT_H
#define KVT_FORMAT_PAGE_LAYOUT_H

#include <cstddef>
#include <cstdint>

#include "format/level_tables.h"
#include "kvturbo/kvturbo.h"

namespace kvt {

inline constexpr unsigned kPageTokens = KVT_PAGE_TOKENS;
inline constexpr unsigned kMaxHeadDim = KVT_MAX_HEAD_DIM;

// The layout of one side of a codec. Offsets in bytes from the page's start.
struct SideLayout {
  kvt_codec_id codec;
  kvt_side side;
  unsigned head_dim;
  const LevelTable* table;   // nullptr for f16
  bool has_residual;         // sketch signs in bit 3 of the key nibbles and residual norms: hybrid keys
  size_t norm_offset;        // fp16[64]
  size_t residual_offset;    // fp16[64] if has_residual
  size_t page_bytes;
};

bool is_supported_head_dim(unsigned head_dim);
bool is_known_codec(int codec);

// codec and head_dim must be known ones.
SideLayout make_side_layout(kvt_codec_id codec, kvt_side side, unsigned head_dim);

// Nibble planes (4.1): the byte that holds dims 8u + j (low) and 8u + 4 + j (high) of a token.
constexpr size_t key_code_offset(unsigned head_dim, unsigned token, unsigned line, unsigned j) {
  return size_t{token / 16} * 8 * head_dim + line * 64 + (token % 16) * 4 + j;
}

// Value planes (4.2).
struct ValuePlanes {
  unsigned blocks;  // nh: 64-dim blocks of three lines for four subgroups
  unsigned rest;    // m: 16-dim subgroups stored whole
  constexpr explicit ValuePlanes(unsigned head_dim) : blocks(head_dim / 64), rest(head_dim % 64 / 16) {}
  constexpr size_t group_bytes() const { return size_t{3} * blocks * 256 + rest * 256; }
  constexpr size_t line(unsigned k, unsigned h) const { return (size_t{k} * blocks + h) * 256; }  // c = 0
  constexpr size_t rest_line(unsigned j) const { return (size_t{3} * blocks + j) * 256; }
};
// Where a token lies within its group's lines.
struct ValueSlot {
  size_t group;     // 0, 1
  size_t offset;    // byte within a (k, h) run of four lines, for w = 0
  unsigned shift;   // 0 or 4
  constexpr explicit ValueSlot(unsigned token)
      : group(token / 32), offset(size_t{token % 16 / 4} * 64 + token % 4), shift(token % 32 / 16 * 4) {}
};

}  // namespace kvt

#endif
