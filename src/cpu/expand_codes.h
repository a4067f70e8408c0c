// Packings of 2 and 3 bits (format.md 4.3) as the ones that the vector kernels read: keys as nibble planes (4.1), 2-bit values
// as 3-bit value planes (4.2). Kernels tell trellis bits by their place, so t goes to the field's highest bit and m keeps the
// low ones: codes become  m | t << 3  for keys,  m | t << 2  for values; fill_levels is told. Three to six logic operations a
// line, within the first-level cache. Included by attend_loop.h; internal linkage.
#ifndef KVT_CPU_EXPAND_CODES_H
#define KVT_CPU_EXPAND_CODES_H

#include <cstring>

#include "format/page_layout.h"

namespace kvt::cpu {
namespace {

// A part of a line, as wide as a register.
template <unsigned kBytes>
struct LinePart {
  typedef uint32_t V __attribute__((vector_size(kBytes)));
  static V load(const uint8_t* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(uint8_t* p, V v) { std::memcpy(p, &v, sizeof v); }
};

// The bits of all nibbles of x that a mask of four bits keeps.
template <class V>
inline V bits_of(V x, uint32_t nibble_mask) {
  return x & (nibble_mask * 0x11111111u);
}

// to: [4 tiles][head_dim / 8 lines][64].
template <unsigned kBytes>
inline void expand_keys(const SideLayout& layout, const uint8_t* page, uint8_t* to) {
  using Part = LinePart<kBytes>;
  using V = typename Part::V;
  const KeyPlanes planes(layout.head_dim, layout.code_bits);
  const size_t tile_bytes = planes.tile_bytes(), to_tile_bytes = size_t{8} * layout.head_dim;
  auto whole = [](V x) { return bits_of(x, 3) | bits_of(x, 4) << 1; };   // 3 bits
  auto even = [](V x) { return bits_of(x, 1) | bits_of(x, 2) << 2; };    // 2 bits, the first of two lines
  auto odd = [](V x) { return bits_of(V(x >> 2), 1) | bits_of(x, 8); };  // and the second
  for (unsigned tile = 0; tile < 4; ++tile, page += tile_bytes, to += to_tile_bytes) {
    for (unsigned part = 0; part < 64; part += kBytes) {
      const uint8_t* from = page + part;
      uint8_t* line = to + part;
      for (unsigned run = 0; run < planes.runs; ++run, line += 256) {
        const V x0 = Part::load(from), x1 = Part::load(from + 64);
        if (layout.code_bits == 3) {
          const V x2 = Part::load(from + 128);
          Part::store(line, whole(x0));
          Part::store(line + 64, whole(x1));
          Part::store(line + 128, whole(x2));
          Part::store(line + 192, bits_of(x0, 8) >> 3 | bits_of(x1, 8) >> 2 | bits_of(x2, 8));
          from += 192;
        } else {
          Part::store(line, even(x0));
          Part::store(line + 64, odd(x0));
          Part::store(line + 128, even(x1));
          Part::store(line + 192, odd(x1));
          from += 128;
        }
      }
      for (unsigned rest = 0; rest < planes.rest; ++rest, line += 64) {  // two lines or none: a tile has an even number
        const V x = Part::load(from);
        Part::store(line, layout.code_bits == 3 ? whole(x) : rest % 2 == 0 ? even(x) : odd(x));
        from += layout.code_bits == 3 || rest % 2 == 1 ? 64 : 0;
      }
    }
  }
}

// head_dim is a multiple of 64. to: [2 groups] of the 3-bit packing.
template <unsigned kBytes>
inline void expand_two_bit_values(unsigned head_dim, const uint8_t* page, uint8_t* to) {
  using Part = LinePart<kBytes>;
  using V = typename Part::V;
  const ValuePlanes from_planes(head_dim, 2), planes(head_dim, 3);
  for (unsigned group = 0; group < 2; ++group, page += from_planes.group_bytes(), to += planes.group_bytes()) {
    for (unsigned at = 0; at < 256 * planes.blocks; at += kBytes) {
      const V a = Part::load(page + at), b = Part::load(page + from_planes.line(1, 0) + at);  // lines 0 and 1, 2 and 3 of a run
      Part::store(to + at, bits_of(a, 1) | bits_of(a, 2) << 1 | bits_of(b, 4) << 1);          // bit 3: m of line 3
      Part::store(to + planes.line(1, 0) + at, bits_of(V(a >> 2), 1) | bits_of(a, 8) >> 1);
      Part::store(to + planes.line(2, 0) + at, bits_of(b, 1) | bits_of(b, 2) << 1 | bits_of(b, 8));  // bit 3: t of line 3
    }
  }
}

}  // namespace
}  // namespace kvt::cpu

#endif
