// Codes <-> the bytes of a page (format.md sections 4.1 to 4.3).
#include "reference/reference.h"

namespace kvt::reference {
namespace {

struct Field {
  size_t byte;
  unsigned shift;
};

// Which line of its run (or of the rest) a dim lies in.
unsigned line_in_run(kvt_side side, unsigned dim) { return side == KVT_KEY ? dim % 32 / 8 : dim % 64 / 16; }

// The nibble at the place of `dim`, in stored line i of the run (or rest) that dim belongs to.
Field nibble_at(const SideLayout& layout, unsigned slot, unsigned dim, unsigned i) {
  if (layout.side == KVT_KEY) {
    const KeyPlanes planes(layout.head_dim, layout.code_bits);
    return {planes.offset(slot, dim / 32 * layout.code_bits + i, dim % 4), dim % 8 / 4 * 4};
  }
  const ValuePlanes planes(layout.head_dim, layout.code_bits);
  const ValueSlot at(slot);
  const unsigned h = dim / 64;
  const size_t line = h < planes.blocks ? planes.line(i, h) : planes.rest_line(i);
  return {at.group * planes.group_bytes() + line + at.offset + 4 * (dim % 16), at.shift};
}

size_t byte_code_at(const SideLayout& layout, unsigned slot, unsigned dim) {
  return KeyPlanes(layout.head_dim, 8).offset(slot, dim / 4, dim % 4);
}

// Calls visit(code bits, where they lie): shift of the code's bits, their number, and their field.
template <class Visit>
void for_each_part(const SideLayout& layout, unsigned slot, unsigned dim, Visit visit) {
  const unsigned k = line_in_run(layout.side, dim);
  if (layout.code_bits == 2) {
    Field at = nibble_at(layout, slot, dim, k / 2);
    at.shift += k % 2 * 2;
    visit(0u, 2u, at);
  } else if (layout.code_bits == 3 && k == 3) {  // the line that is not stored
    for (unsigned bit = 0; bit < 3; ++bit) {
      Field at = nibble_at(layout, slot, dim, bit);
      at.shift += 3;
      visit(bit, 1u, at);
    }
  } else {
    visit(0u, layout.code_bits, nibble_at(layout, slot, dim, k));
  }
}

}  // namespace

void read_codes(const SideLayout& layout, const uint8_t* page, unsigned slot, uint8_t* codes) {
  for (unsigned i = 0; i < layout.head_dim; ++i) {
    if (layout.code_bits == 8) {
      codes[i] = page[byte_code_at(layout, slot, i)] & 0x7f;
      continue;
    }
    unsigned code = 0;
    for_each_part(layout, slot, i, [&](unsigned from, unsigned n, const Field& at) {
      code |= (page[at.byte] >> at.shift & ((1u << n) - 1)) << from;
    });
    codes[i] = static_cast<uint8_t>(code);
  }
}

void write_codes(const SideLayout& layout, const uint8_t* codes, uint8_t* page, unsigned slot) {
  if (layout.code_bits == 8) {
    for (unsigned i = 0; i < layout.head_dim; ++i) page[byte_code_at(layout, slot, i)] = codes[i];
    return;
  }
  auto clear = [&](const Field& at) { page[at.byte] = static_cast<uint8_t>(page[at.byte] & ~(0xfu << (at.shift & 4))); };
  for (unsigned i = 0; i < layout.head_dim; ++i) {  // whole nibbles: reserved bits too
    for_each_part(layout, slot, i, [&](unsigned, unsigned, const Field& at) { clear(at); });
  }
  for (unsigned i = 0; i < layout.head_dim; ++i) {
    for_each_part(layout, slot, i, [&](unsigned from, unsigned n, const Field& at) {
      page[at.byte] = static_cast<uint8_t>(page[at.byte] | (codes[i] >> from & ((1u << n) - 1)) << at.shift);
    });
  }
}

}  // namespace kvt::reference
