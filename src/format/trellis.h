// The trellis of format.md section 4.4: eight states, one trellis bit a code, four subsets of levels.
//
// With t[e] the trellis bit of element e of a circular chain:  z0 = t[e-2],  z1 = t[e] ^ t[e-1] ^ t[e-3],
// level index = m << 2 | z1 << 1 | z0, m = the code's other bits. (Ungerboeck's 8-state code, feed-forward form.)
#ifndef KVT_FORMAT_TRELLIS_H
#define KVT_FORMAT_TRELLIS_H

#include <array>
#include <cstdint>

#include "format/page_layout.h"

namespace kvt {

inline constexpr unsigned kTrellisStates = 8;
inline constexpr unsigned kMaxChain = 64;  // head_dim / 4 at most

// State = t[e-1] | t[e-2] << 1 | t[e-3] << 2; the next state is t[e] | (state << 1 & 7).
// Next state s is reached from (s >> 1) and (s >> 1 | 4); branch p = 0, 1 names them.
constexpr unsigned trellis_previous(unsigned state, unsigned branch) { return state >> 1 | branch << 2; }
constexpr unsigned trellis_subset(unsigned state, unsigned branch) {
  const unsigned z0 = state >> 2 & 1, z1 = (state ^ state >> 1 ^ branch) & 1;
  return z1 << 1 | z0;
}

// The four circular chains of a vector: order[chain][e] = dim, e < length[chain].
struct TrellisChains {
  std::array<uint8_t, 4> length;
  std::array<std::array<uint8_t, kMaxChain>, 4> order;
};

// Keys: chain c takes the lines u = c, c + 4, ... ; element pos * n + i is nibble pos (by address and low before high) of line
// c + 4 i. Values: chain c takes words w = 4c .. 4c + 3; elements run over blocks h, words, subgroups k; then over words, rest lines.
constexpr TrellisChains make_trellis_chains(kvt_side side, unsigned head_dim) {
  TrellisChains chains{};
  for (unsigned c = 0; c < 4; ++c) {
    unsigned n = 0;
    auto add = [&](unsigned dim) { chains.order[c][n++] = static_cast<uint8_t>(dim); };
    if (side == KVT_KEY) {
      for (unsigned pos = 0; pos < 8; ++pos) {
        for (unsigned u = c; u < head_dim / 8; u += 4) add(8 * u + pos / 2 + pos % 2 * 4);
      }
    } else {
      const unsigned blocks = head_dim / 64, rest = head_dim % 64 / 16;
      for (unsigned h = 0; h < blocks; ++h) {
        for (unsigned w = 4 * c; w < 4 * c + 4; ++w) {
          for (unsigned k = 0; k < 4; ++k) add(64 * h + 16 * k + w);
        }
      }
      for (unsigned w = 4 * c; w < 4 * c + 4; ++w) {
        for (unsigned j = 0; j < rest; ++j) add(64 * blocks + 16 * j + w);
      }
    }
    chains.length[c] = static_cast<uint8_t>(n);
  }
  return chains;
}

// Computed once for each side and head dim.
const TrellisChains& trellis_chains(kvt_side side, unsigned head_dim);

}  // namespace kvt

#endif
