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
  const LevelTable* table;  // nullptr for f16
  const float* scales;      // [kTrellisScales] that the encoder tries, or nullptr
  unsigned code_bits;       // stored for a code: 2, 3, 4 (fields of nibbles) or 8; 0 for f16
  bool has_residual;        // sketch signs in bit 3 of the key nibbles and residual norms: hybrid keys
  size_t norm_offset;       // fp16[64]
  size_t residual_offset;   // fp16[64] if has_residual
  size_t page_bytes;
};

bool is_supported_head_dim(unsigned head_dim);
bool is_known_codec(int codec);

// codec and head_dim must be known ones.
SideLayout make_side_layout(kvt_codec_id codec, kvt_side side, unsigned head_dim);

// Nibble lines, as keys and values share them (4.1 to 4.3). A line holds one nibble for each of its places; lines come in runs
// of four, then the rest. Of a run, as many lines are stored as a code has bits:
//   4 bits   all four, a code a nibble
//   3 bits   three; bit 3 of their nibbles is bit 0, 1, 2 of the fourth line's codes
//   2 bits   two; lines 0 and 1 of the run are bits 0-1 and 2-3 of the first, lines 2 and 3 of the second
// Rest lines likewise: one by one (3 bits: bit 3 is zero), or in pairs, a single last one with bits 2-3 zero.
constexpr unsigned stored_rest_lines(unsigned code_bits, unsigned rest) { return code_bits == 2 ? (rest + 1) / 2 : rest; }

// Keys: a tile of 16 tokens; line u holds dims 8u .. 8u+7. With 8 bits a code is a byte and line u holds dims 4u .. 4u+3.
struct KeyPlanes {
  unsigned code_bits;
  unsigned runs;
  unsigned rest;
  constexpr KeyPlanes(unsigned head_dim, unsigned bits) : code_bits(bits), runs(head_dim / 32), rest(head_dim % 32 / 8) {}
  constexpr unsigned stored_lines() const {
    return code_bits * runs + (code_bits == 8 ? 2 * rest : stored_rest_lines(code_bits, rest));
  }
  constexpr size_t tile_bytes() const { return size_t{64} * stored_lines(); }
  // The byte of a token in a stored line: nibbles j (low) and 4 + j (high) of the line's eight dims.
  constexpr size_t offset(unsigned token, unsigned stored_line, unsigned j) const {
    return token / 16 * tile_bytes() + stored_line * 64 + (token % 16) * 4 + j;
  }
};

// Values: two groups of 32 tokens; line k of run h holds dims 64h + 16k .. + 15, rest line j dims 64 runs + 16j .. + 15.
struct ValuePlanes {
  unsigned code_bits;
  unsigned blocks;  // nh: runs
  unsigned rest;    // m
  constexpr explicit ValuePlanes(unsigned head_dim, unsigned bits = 3)  // 3: section 4.2
      : code_bits(bits), blocks(head_dim / 64), rest(head_dim % 64 / 16) {}
  constexpr size_t group_bytes() const { return (size_t{code_bits} * blocks + stored_rest_lines(code_bits, rest)) * 256; }
  constexpr size_t line(unsigned k, unsigned h) const { return (size_t{k} * blocks + h) * 256; }  // stored line; c = 0
  constexpr size_t rest_line(unsigned j) const { return (size_t{code_bits} * blocks + j) * 256; }
};
// Where a token lies within its group's lines.
struct ValueSlot {
  size_t group;    // 0, 1
  size_t offset;   // byte within a (k, h) run of four lines, for w = 0
  unsigned shift;  // 0 or 4
  constexpr explicit ValueSlot(unsigned token)
      : group(token / 32), offset(size_t{token % 16 / 4} * 64 + token % 4), shift(token % 32 / 16 * 4) {}
};

}  // namespace kvt

#endif
