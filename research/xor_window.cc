#include "xor_window.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "format/trellis.h"

namespace kvt::research {
namespace {

constexpr float kUnreachable = 1e30f;
constexpr unsigned kSeams = 8;  // start states that are tried for a circular chain: 10 passes over it

// States are what a window leaves to the next one: kWindowBits - kBits bits.
template <unsigned kBits>
struct Search {
  static constexpr unsigned kStates = kWindows >> kBits, kBranches = 1u << kBits;

  const float* levels;
  uint8_t branch[kMaxChain][kStates];  // oldest bits of the window into each state
  float metric[kStates];

  // start: the state before the first element, or -1 for any.
  void run(const float* y, unsigned n, int start) {
    for (unsigned s = 0; s < kStates; ++s) metric[s] = start < 0 || s == static_cast<unsigned>(start) ? 0.0f : kUnreachable;
    continue_run(y, n);
  }
  void continue_run(const float* y, unsigned n) {
    for (unsigned e = 0; e < n; ++e) {
      float before[kWindows], next[kStates];
      int32_t taken[kStates] = {};
      for (unsigned s = 0; s < kStates; ++s) {
        for (unsigned c = 0; c < kBranches; ++c) before[s * kBranches + c] = metric[s];
      }
      for (unsigned s = 0; s < kStates; ++s) next[s] = kUnreachable;
      for (unsigned b = 0; b < kBranches; ++b) {
        for (unsigned s = 0; s < kStates; ++s) {
          const float error = y[e] - levels[b * kStates + s], cost = before[b * kStates + s] + error * error;
          const bool better = cost < next[s];
          next[s] = better ? cost : next[s];
          taken[s] = better ? static_cast<int32_t>(b) : taken[s];
        }
      }
      std::copy(next, next + kStates, metric);
      for (unsigned s = 0; s < kStates; ++s) branch[e][s] = static_cast<uint8_t>(taken[s]);
    }
  }
  // Follows the path that ends in state s back to element `first`; returns the state before that.
  unsigned trace(unsigned s, unsigned n, unsigned first, uint16_t* windows) const {
    for (unsigned e = n; e-- > first;) {
      const unsigned window = branch[e][s] * kStates + s;
      if (windows != nullptr) windows[e] = static_cast<uint16_t>(window);
      s = window >> kBits;
    }
    return s;
  }
  unsigned best_end() const { return static_cast<unsigned>(std::min_element(metric, metric + kStates) - metric); }
};

template <unsigned kBits>
ChainSearch search(const float* levels, const float* y, unsigned n, Ends ends, uint16_t* windows) {
  Search<kBits> search;
  search.levels = levels;
  if (ends == Ends::kFree) {
    search.run(y, n, -1);
    const unsigned end = search.best_end();
    search.trace(end, n, 0, windows);
    return {search.metric[end], 1};
  }
  // Start states in the order in which they are tried: all, or the seams of the best paths through two laps.
  constexpr unsigned kStates = Search<kBits>::kStates;
  unsigned starts[kStates], n_starts = kStates, n_laps = 0;
  std::iota(starts, starts + kStates, 0u);
  if (ends == Ends::kCircular) {
    search.run(y, n, -1);
    search.continue_run(y, n);
    n_laps = 2;
    unsigned last[kStates];
    std::iota(last, last + kStates, 0u);
    std::sort(last, last + kStates, [&](unsigned a, unsigned b) { return search.metric[a] < search.metric[b]; });
    n_starts = 0;
    for (unsigned i = 0; i < kStates && n_starts < kSeams; ++i) {
      const unsigned seam = search.trace(last[i], n, 0, nullptr);
      if (std::find(starts, starts + n_starts, seam) == starts + n_starts) starts[n_starts++] = seam;
      if (seam == last[i]) break;  // the path closes: what follows is longer
    }
  }
  float best = kUnreachable;
  for (unsigned i = 0; i < n_starts; ++i) {
    search.run(y, n, static_cast<int>(starts[i]));
    if (search.metric[starts[i]] >= best) continue;
    best = search.metric[starts[i]];
    search.trace(starts[i], n, 0, windows);
  }
  return {best, n_laps + n_starts};
}

}  // namespace

// research_errors --train 3 1100 1c8 14 e1 4a 1e4
const XorCode kXor3 = {
    3, 5, {0x1f0, 0x18, 0xd3, 0x7a, 0x1e5}, 0.0550113916f, {1, 2, 5, 6, 8, 10, 12, 14, 16, 19, 21, 24, 28, 32, 39, 51}};
// research_errors --train 4 1300 c 120 16b e2 24 128
const XorCode kXor4 = {4, 6, {0x8, 0x120, 0x16f, 0xe2, 0x24, 0x13c}, 0.0551576503f, {1,  2,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                                                                     11, 12, 13, 14, 15, 17, 17, 19, 20, 22, 23,
                                                                                     24, 26, 28, 30, 32, 35, 38, 43, 49, 59}};

unsigned XorCode::index_of(unsigned window) const {
  unsigned index = 0;
  for (unsigned i = 0; i < index_bits; ++i) index |= (static_cast<unsigned>(std::popcount(window & masks[i])) & 1) << i;
  return index;
}

int XorCode::level_of(unsigned window) const {
  const unsigned index = index_of(window), half = n_levels() / 2;
  return index >= half ? positive_half[index - half] : -positive_half[half - 1 - index];
}

ChainSearch search_chain(unsigned bits, const float* levels, const float* y, unsigned n, Ends ends, uint16_t* windows) {
  return bits == 3 ? search<3>(levels, y, n, ends, windows) : search<4>(levels, y, n, ends, windows);
}

unsigned encode_xor(const XorCode& code, kvt_side side, unsigned d, const float* y, Ends ends, uint8_t* codes, int8_t* levels) {
  float values[kWindows];
  for (unsigned w = 0; w < kWindows; ++w) values[w] = code.step * static_cast<float>(code.level_of(w));
  const TrellisChains& chains = trellis_chains(side, d);
  unsigned n_passes = 0;
  for (unsigned c = 0; c < 4; ++c) {
    const unsigned n = chains.length[c];
    float chain[kMaxChain];
    uint16_t windows[kMaxChain];
    for (unsigned e = 0; e < n; ++e) chain[e] = y[chains.order[c][e]];
    n_passes += search_chain(code.bits, values, chain, n, ends, windows).n_passes;
    for (unsigned e = 0; e < n; ++e) {
      codes[chains.order[c][e]] = static_cast<uint8_t>(windows[e] & ((1u << code.bits) - 1));
      levels[chains.order[c][e]] = static_cast<int8_t>(code.level_of(windows[e]));
    }
  }
  return n_passes;
}

void decode_xor(const XorCode& code, kvt_side side, unsigned d, const uint8_t* codes, int8_t* levels) {
  const TrellisChains& chains = trellis_chains(side, d);
  for (unsigned c = 0; c < 4; ++c) {
    const unsigned n = chains.length[c];
    unsigned window = 0;
    for (unsigned e = 0; e < n + 2; ++e) {  // three codes fill the window
      window = (window << code.bits | codes[chains.order[c][(e + n - 2) % n]]) & (kWindows - 1);
      if (e >= 2) levels[chains.order[c][e - 2]] = static_cast<int8_t>(code.level_of(window));
    }
  }
}

}  // namespace kvt::research
