// Trellis encoder in vectors: the codes of reference::encode_trellis.
// Lanes are the eight start states, of one chain or of two; registers are the eight states. So one pass over a chain is eight Viterbi
// searches and needs no permutes; the costs of an element's four subsets are broadcast. About 40 vector instructions an element.
// Included by encode_vector.h; internal linkage.
#ifndef KVT_CPU_TRELLIS_VECTOR_H
#define KVT_CPU_TRELLIS_VECTOR_H

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include <cstring>

#include "format/trellis.h"

namespace kvt::cpu {
namespace {

// L lanes: 8 = one chain, 16 = two.
template <unsigned L>
struct SearchLanes {
  typedef float F __attribute__((vector_size(L * sizeof(float))));
  typedef int32_t I __attribute__((vector_size(L * sizeof(int32_t))));
};

// Bit l = lane l of a is below lane l of b.
template <unsigned L>
inline uint16_t below(typename SearchLanes<L>::F a, typename SearchLanes<L>::F b) {
#if defined(__AVX512F__) && defined(__AVX512VL__)
  if constexpr (L == 16) return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_LT_OQ);
  if constexpr (L == 8) return _mm256_cmp_ps_mask(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), _CMP_LT_OQ);
#elif defined(__AVX2__)
  if constexpr (L == 8) return static_cast<uint16_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(a < b)));
#elif defined(__aarch64__)
  if constexpr (L == 8) {
    const typename SearchLanes<L>::I mask = a < b;
    int32x4_t half[2];
    std::memcpy(half, &mask, sizeof half);
    const int32x4_t low = {1, 2, 4, 8}, high = {16, 32, 64, 128};
    return static_cast<uint16_t>(vaddvq_s32(vaddq_s32(vandq_s32(half[0], low), vandq_s32(half[1], high))));
  }
#endif
  unsigned bits = 0;
  for (unsigned l = 0; l < L; ++l) bits |= static_cast<unsigned>(a[l] < b[l]) << l;
  return static_cast<uint16_t>(bits);
}

// Costs and choices of the four subsets, in dim order.
struct SubsetChoices {
  alignas(64) float cost[4][kMaxHeadDim];
  alignas(64) float quantised[4][kMaxHeadDim];
  alignas(64) uint8_t m[4][kMaxHeadDim];
};

struct Survivors {
  uint16_t branch[kMaxChain][kTrellisStates];  // bit = lane: which branch the best path into the state took
};

// Forward search of L / 8 chains of n elements, the first of them at *order. start: the best start state of each chain.
template <unsigned L>
inline void search_chains(const SubsetChoices& choices, const std::array<uint8_t, kMaxChain>* order, unsigned n, Survivors* survivors,
                          unsigned* start) {
  using F = typename SearchLanes<L>::F;
  F metric[kTrellisStates];
  for (unsigned s = 0; s < kTrellisStates; ++s) {
    for (unsigned l = 0; l < L; ++l) metric[s][l] = s == l % 8 ? 0.0f : 1e30f;
  }
  for (unsigned e = 0; e < n; ++e) {
    uint16_t* branch = survivors->branch[e];
    auto cost_of = [&](unsigned z) {
      F cost = F{} + choices.cost[z][order[0][e]];
      if constexpr (L == 16) {
        const typename SearchLanes<L>::I upper = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};
        cost = upper ? F{} + choices.cost[z][order[1][e]] : cost;
      }
      return cost;
    };
    F next[kTrellisStates];
    // States j and j + 4 lead to 2 j and 2 j + 1, over the same two subsets exchanged (trellis_subset): a butterfly.
#pragma GCC unroll 4
    for (unsigned j = 0; j < 4; ++j) {
      const F straight = cost_of(trellis_subset(2 * j, 0)), crossed = cost_of(trellis_subset(2 * j, 1));
      const F a0 = metric[j] + straight, b0 = metric[j + 4] + crossed;
      branch[2 * j] = below<L>(b0, a0);
      next[2 * j] = b0 < a0 ? b0 : a0;
      const F a1 = metric[j] + crossed, b1 = metric[j + 4] + straight;
      branch[2 * j + 1] = below<L>(b1, a1);
      next[2 * j + 1] = b1 < a1 ? b1 : a1;
    }
#pragma GCC unroll 8
    for (unsigned s = 0; s < kTrellisStates; ++s) metric[s] = next[s];
  }
  for (unsigned chain = 0; chain < L / 8; ++chain) {
    unsigned best = 0;
    for (unsigned l = 1; l < 8; ++l) {
      if (metric[l][8 * chain + l] < metric[best][8 * chain + best]) best = l;
    }
    start[chain] = best;
  }
}

// Codes and quantised values [head_dim] of a vector whose subset choices are known. L: lanes of the search.
template <unsigned L>
inline void search_vector(const LevelTable& table, const TrellisChains& chains, const SubsetChoices& choices, uint8_t* codes,
                          float* quantised) {
  constexpr unsigned kTogether = L / 8;  // chains 2 i and 2 i + 1 are of one length
  Survivors survivors[4 / kTogether];
  unsigned start[4], state[4];
  for (unsigned c = 0; c < 4; c += kTogether) {
    search_chains<L>(choices, &chains.order[c], chains.length[c], &survivors[c / kTogether], start + c);
  }
  std::memcpy(state, start, sizeof state);
  // Backwards through all chains at once: each is a chain of dependent loads.
  for (unsigned e = kMaxChain; e-- > 0;) {
    for (unsigned c = 0; c < 4; ++c) {
      if (e >= chains.length[c]) continue;
      const unsigned lane = start[c] + c % kTogether * 8, s = state[c];
      const unsigned taken = survivors[c / kTogether].branch[e][s] >> lane & 1u, dim = chains.order[c][e], z = trellis_subset(s, taken);
      codes[dim] = static_cast<uint8_t>(choices.m[z][dim] | (s & 1u) << (table.bits - 1));
      quantised[dim] = choices.quantised[z][dim];
      state[c] = trellis_previous(s, taken);
    }
  }
}

}  // namespace
}  // namespace kvt::cpu

#endif
