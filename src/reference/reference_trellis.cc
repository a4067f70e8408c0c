// Trellis codes (format.md sections 4.4 and 5, step 4).
#include <algorithm>

#include "format/trellis.h"
#include "reference/reference.h"

namespace kvt::reference {
namespace {

constexpr float kUnreachable = 1e30f;

struct Choice {
  float cost;
  uint8_t m;
  int8_t level;
};

// The nearest level of subset z.
Choice nearest_in_subset(const LevelTable& table, float y, unsigned z) {
  unsigned m = 0;
  for (unsigned j = 0; j + 1 < table.n_levels() / 4; ++j) m += y > table.thresholds[z * kSubsetThresholds + j];
  const int8_t level = table.levels[4 * m + z];
  const float error = y - table.step * static_cast<float>(level);
  return {error * error, static_cast<uint8_t>(m), level};
}

struct Path {
  float cost;
  uint8_t state[kMaxChain];   // after each element
  uint8_t branch[kMaxChain];  // taken into it
};

// The cheapest path that begins and ends in `start` (Viterbi); of two equal branches, branch 0.
void best_path(const Choice (*choices)[4], unsigned n, unsigned start, Path* path) {
  float metric[kTrellisStates];
  uint8_t branch[kMaxChain][kTrellisStates];
  for (unsigned s = 0; s < kTrellisStates; ++s) metric[s] = s == start ? 0.0f : kUnreachable;
  for (unsigned e = 0; e < n; ++e) {
    float next[kTrellisStates];
    for (unsigned s = 0; s < kTrellisStates; ++s) {
      const float a = metric[trellis_previous(s, 0)] + choices[e][trellis_subset(s, 0)].cost;
      const float b = metric[trellis_previous(s, 1)] + choices[e][trellis_subset(s, 1)].cost;
      branch[e][s] = b < a;
      next[s] = std::min(a, b);
    }
    std::copy(next, next + kTrellisStates, metric);
  }
  path->cost = metric[start];
  unsigned s = start;
  for (unsigned e = n; e-- > 0;) {
    path->state[e] = static_cast<uint8_t>(s);
    path->branch[e] = branch[e][s];
    s = trellis_previous(s, branch[e][s]);
  }
}

}  // namespace

void encode_trellis(const SideLayout& layout, const float* y, uint8_t* codes, float* quantised) {
  const LevelTable& table = *layout.table;
  const TrellisChains& chains = trellis_chains(layout.side, layout.head_dim);
  for (unsigned c = 0; c < 4; ++c) {
    const unsigned n = chains.length[c];
    Choice choices[kMaxChain][4];
    for (unsigned e = 0; e < n; ++e) {
      for (unsigned z = 0; z < 4; ++z) choices[e][z] = nearest_in_subset(table, y[chains.order[c][e]], z);
    }
    Path best, path;
    best_path(choices, n, 0, &best);
    for (unsigned start = 1; start < kTrellisStates; ++start) {  // tail-biting: all start states, the first of equals
      best_path(choices, n, start, &path);
      if (path.cost < best.cost) best = path;
    }
    for (unsigned e = 0; e < n; ++e) {
      const Choice& choice = choices[e][trellis_subset(best.state[e], best.branch[e])];
      const unsigned dim = chains.order[c][e];
      codes[dim] = static_cast<uint8_t>(choice.m | (best.state[e] & 1u) << (table.bits - 1));
      quantised[dim] = table.step * static_cast<float>(choice.level);
    }
  }
}

void level_indices(const SideLayout& layout, const uint8_t* codes, uint8_t* index) {
  const unsigned top = layout.table->bits - 1;
  if (!layout.table->trellis) {
    for (unsigned i = 0; i < layout.head_dim; ++i) index[i] = static_cast<uint8_t>(codes[i] & ((2u << top) - 1));
    return;
  }
  const TrellisChains& chains = trellis_chains(layout.side, layout.head_dim);
  for (unsigned c = 0; c < 4; ++c) {
    const unsigned n = chains.length[c];
    uint8_t t[3 + kMaxChain];  // of the elements, behind those of the last three: the chain is a ring
    for (unsigned e = 0; e < n; ++e) t[3 + e] = static_cast<uint8_t>(codes[chains.order[c][e]] >> top & 1u);
    std::copy_n(t + n, 3, t);
    for (unsigned e = 0; e < n; ++e) {
      const unsigned dim = chains.order[c][e], m = codes[dim] & ((1u << top) - 1);
      const unsigned z0 = t[e + 1], z1 = t[e + 3] ^ t[e + 2] ^ t[e];
      index[dim] = static_cast<uint8_t>(m << 2 | z1 << 1 | z0);
    }
  }
}

}  // namespace kvt::reference
