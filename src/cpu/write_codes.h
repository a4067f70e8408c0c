// Writers of codes into pages (format.md sections 4.1 to 4.3), many nibbles at a time: the bytes of reference::write_codes.
// Included by encode_vector.h; internal linkage. Little-endian machines.
#ifndef KVT_CPU_WRITE_CODES_H
#define KVT_CPU_WRITE_CODES_H

#include <cstring>

#include "format/page_layout.h"

namespace kvt::cpu {
namespace {

// Stored lines of a run of four, one code in each field of the Words; `ones` has bit 0 of each field set. Returns how many.
template <class Word>
inline unsigned store_run(unsigned code_bits, const Word* line, Word ones, Word* stored) {
  switch (code_bits) {
    case 2:
      stored[0] = line[0] | line[1] << 2;
      stored[1] = line[2] | line[3] << 2;
      return 2;
    case 3:
      for (unsigned k = 0; k < 3; ++k) stored[k] = line[k] | (line[3] >> k & ones) << 3;
      return 3;
    default:
      for (unsigned k = 0; k < 4; ++k) stored[k] = line[k];
      return 4;
  }
}

// Rest lines: with 2 bits in pairs, the last one perhaps alone.
template <class Word>
inline unsigned store_rest(unsigned code_bits, const Word* line, unsigned n, Word* stored) {
  const unsigned n_stored = stored_rest_lines(code_bits, n);
  for (unsigned k = 0; k < n_stored; ++k) {
    stored[k] = code_bits != 2 ? line[k] : 2 * k + 1 < n ? line[2 * k] | line[2 * k + 1] << 2 : line[2 * k];
  }
  return n_stored;
}

inline void write_key_codes(const SideLayout& layout, const uint8_t* codes, uint8_t* page, unsigned slot) {
  const KeyPlanes planes(layout.head_dim, layout.code_bits);
  uint8_t* to = page + planes.offset(slot, 0, 0);
  if (layout.code_bits == 8) {
    for (unsigned u = 0; u < planes.stored_lines(); ++u) std::memcpy(to + size_t{u} * 64, codes + 4 * u, 4);
    return;
  }
  auto line_of = [&](unsigned u) {  // eight codes a word
    uint32_t low, high;
    std::memcpy(&low, codes + 8 * u, 4);
    std::memcpy(&high, codes + 8 * u + 4, 4);
    return low | high << 4;
  };
  uint32_t line[4], stored[4];
  for (unsigned run = 0; run <= planes.runs; ++run) {
    const unsigned n = run < planes.runs ? 4 : planes.rest;
    for (unsigned k = 0; k < n; ++k) line[k] = line_of(4 * run + k);
    const unsigned n_stored = run < planes.runs ? store_run(layout.code_bits, line, 0x11111111u, stored)
                                                : store_rest(layout.code_bits, line, n, stored);
    for (unsigned k = 0; k < n_stored; ++k, to += 64) std::memcpy(to, &stored[k], 4);
  }
}

inline void write_value_codes(const SideLayout& layout, const uint8_t* codes, uint8_t* page, unsigned slot) {
  typedef uint8_t Word __attribute__((vector_size(16)));  // the codes of a line's 16 places, a byte each
  const ValuePlanes planes(layout.head_dim, layout.code_bits);
  const ValueSlot at(slot);
  uint8_t* group = page + at.group * planes.group_bytes() + at.offset;
  const auto keep = static_cast<uint8_t>(0xf0u >> at.shift);
  auto write = [&](uint8_t* to, Word nibbles) {
    for (unsigned w = 0; w < 16; ++w) to[4 * w] = static_cast<uint8_t>((to[4 * w] & keep) | nibbles[w] << at.shift);
  };
  Word line[4], stored[4];
  for (unsigned h = 0; h < planes.blocks; ++h) {
    std::memcpy(line, codes + 64 * h, sizeof line);
    const unsigned n_stored = store_run(layout.code_bits, line, Word{} + 1, stored);
    for (unsigned k = 0; k < n_stored; ++k) write(group + planes.line(k, h), stored[k]);
  }
  std::memcpy(line, codes + 64 * planes.blocks, size_t{16} * planes.rest);
  const unsigned n_stored = store_rest(layout.code_bits, line, planes.rest, stored);
  for (unsigned j = 0; j < n_stored; ++j) write(group + planes.rest_line(j), stored[j]);
}

}  // namespace
}  // namespace kvt::cpu

#endif
