// Trellis codes with a linear window (docs/algorithm.md 8, "Tried"): the level of an element is chosen by XORs of the nine
// newest code bits, its own and those of the elements before it in its circular chain. QTIP's bitshift trellis with a table
// that registers can hold.
#ifndef KVT_RESEARCH_XOR_WINDOW_H
#define KVT_RESEARCH_XOR_WINDOW_H

#include <array>
#include <cstdint>

#include "format/page_layout.h"

namespace kvt::research {

inline constexpr unsigned kWindowBits = 9;
inline constexpr unsigned kWindows = 1u << kWindowBits;

struct XorCode {
  unsigned bits;                  // of a code
  unsigned index_bits;            // of a level
  std::array<uint16_t, 6> masks;  // index bit i = parity(window & masks[i]); the newest code is the window's lowest bits
  float step;
  std::array<int8_t, 32> positive_half;  // ascending, as level tables of the product

  unsigned n_levels() const { return 1u << index_bits; }
  unsigned index_of(unsigned window) const;
  int level_of(unsigned window) const;
};

// The codes of issue 6: trained by `research_errors --train`.
extern const XorCode kXor3, kXor4;

enum class Ends {
  kCircular,       // the state before a chain is that after it: the best of a few that two laps without such a bound suggest
  kCircularExact,  // the best of all
  kFree            // any states at both ends: the difference is what circular chains lose
};

struct ChainSearch {
  float error;        // squared
  unsigned n_passes;  // over the chain; each is kWindows add-compare-selects an element
};

// The cheapest path through one chain y [n <= kMaxChain], levels: values of the windows. windows: of each element.
ChainSearch search_chain(unsigned bits, const float* levels, const float* y, unsigned n, Ends ends, uint16_t* windows);

// Codes [d] and integer levels [d] of a vector y of unit variance, in the chains of the product. Returns the passes over the
// four chains.
unsigned encode_xor(const XorCode& code, kvt_side side, unsigned d, const float* y, Ends ends, uint8_t* codes, int8_t* levels);
void decode_xor(const XorCode& code, kvt_side side, unsigned d, const uint8_t* codes, int8_t* levels);

}  // namespace kvt::research

#endif
