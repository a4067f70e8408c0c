// Unpacking of whole pages to int8 scratch in plain loops: the scalar kernels' way, and the vector kernels' for layouts that they
// have no fast path for (trellis values of head dims that 64 does not divide).
#ifndef KVT_CPU_UNPACK_PLAIN_H
#define KVT_CPU_UNPACK_PLAIN_H

#include "cpu/kernel_table.h"

namespace kvt::cpu {

// Orders as in CodeScratch. sign may be nullptr.
void unpack_keys_plain(const SideLayout& layout, const uint8_t* page, uint8_t* key, uint8_t* sign);
void unpack_values_plain(const SideLayout& layout, const uint8_t* page, int8_t* value);

}  // namespace kvt::cpu

#endif
