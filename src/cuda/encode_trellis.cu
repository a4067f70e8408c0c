// Encoder of trellis codes: the tail-biting Viterbi search of format.md section 5, step 4. One warp a row: lane 8 c + s searches chain c
// from start state s, with the eight path costs in registers.
#include <type_traits>

#include "cuda/encode_block.cuh"
#include "format/trellis.h"

namespace kvt::cuda {
namespace {

constexpr float kUnreachable = 1e30f;

// Position of a coordinate in the chains (format.md 4.4): the inverse of make_trellis_chains.
struct ChainPosition {
  int chain, element;
};
template <int kDim, bool kKey>
__device__ __forceinline__ ChainPosition chain_position(int dim) {
  if constexpr (kKey) {
    const int line = dim / 8, nibble = dim % 4 * 2 + dim % 8 / 4, chain = line % 4;
    return {chain, nibble * ((kDim / 8 - chain + 3) / 4) + line / 4};
  } else {
    constexpr int kBlocks = kDim / 64, kRest = kDim % 64 / 16;
    const int h = dim / 64, k = dim % 64 / 16, w = dim % 16;
    return {w / 4, h < kBlocks ? 16 * h + w % 4 * 4 + k : 16 * kBlocks + w % 4 * kRest + k};
  }
}
template <int kDim, bool kKey>
__device__ __forceinline__ int chain_length(int chain) {
  return kKey && kDim % 32 != 0 ? (kDim / 8 - chain + 3) / 4 * 8 : kDim / 4;
}

template <int kDim, bool kKey>
struct WarpSearch {
  static constexpr int kLongest = kKey ? (kDim / 8 + 3) / 4 * 8 : kDim / 4;
  float4 cost[4][kLongest +
                 1];  // of the nearest level of each subset, for one row; the padding keeps the chains in different banks
  // Of the two rows of the warp:
  uint32_t branches[2][kLongest / 4][32];  // bit 31 - 8 j - s: the branch into state s at element 4 i + j, for each lane
  float y[2][kDim];
  uint16_t choice[2][4][kLongest];  // bits 4z..: m of the nearest level of subset z
  uint8_t path[2][4][kLongest];     // subset | trellis bit << 2
};

template <int kDim, bool kKey>
struct TrellisQuantiser {
  static constexpr bool kHasResidual = false, kTrellis = true;
  static constexpr int kMinBlocks = kDim <= 128 ? 4 : 2;
  using Search = WarpSearch<kDim, kKey>;
  static constexpr int kGroups = Search::kLongest / 4;
  struct Shared {
    Search warps[kEncodeWarps];
  };

  template <int kBits>
  __device__ static void list_choices(const EncodeTables& tables, Search& s, int v, int lane) {
#pragma unroll 2
    for (int dim = lane; dim < kDim; dim += 32) {
      const float y = s.y[v][dim];
      float cost[4];
      uint32_t choice = 0;
#pragma unroll
      for (int z = 0; z < 4; ++z) {
        int node = 1;
#pragma unroll
        for (int level = 0; level < kBits - 1; ++level) node = 2 * node + (y > tables.tree[8 * z + node]);
        const int m = node - (1 << (kBits - 1));
        const float error = y - tables.value[4 * m + z];
        cost[z] = error * error;
        choice |= m << (4 * z);
      }
      const ChainPosition at = chain_position<kDim, kKey>(dim);
      s.cost[at.chain][at.element] = make_float4(cost[0], cost[1], cost[2], cost[3]);
      s.choice[v][at.chain][at.element] = static_cast<uint16_t>(choice);
    }
  }

  // Cost of the cheapest path of a chain from state `start` back to it. Branches are the signs of b - a, shifted into a word:
  // comparing and setting a bit would take three operations of the slower pipe for one.
  __device__ static float search_paths(Search& s, int v, int chain, int start, int lane) {
    float metric[kTrellisStates];
#pragma unroll
    for (int i = 0; i < 8; ++i) metric[i] = i == start ? 0.0f : kUnreachable;
    for (int group = 0; group < chain_length<kDim, kKey>(chain) / 4; ++group) {
      uint32_t branches = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float4 k = s.cost[chain][4 * group + j];
        const float cost[4] = {k.x, k.y, k.z, k.w};
        float next[kTrellisStates];
#pragma unroll
        for (unsigned i = 0; i < 8; ++i) {
          const float a = metric[trellis_previous(i, 0)] + cost[trellis_subset(i, 0)];
          const float b = metric[trellis_previous(i, 1)] + cost[trellis_subset(i, 1)];
          branches = __funnelshift_l(__float_as_uint(b - a), branches, 1);
          next[i] = fminf(a, b);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) metric[i] = next[i];
      }
      s.branches[v][group][lane] = branches;
    }
    float cost = metric[0];
#pragma unroll
    for (int i = 1; i < 8; ++i) cost = i == start ? metric[i] : cost;
    return cost;
  }

  // The best start state of the lane's chain; of equal costs, the lower one.
  __device__ static int best_start(const EncodeTables& tables, Search& s, int v, int lane) {
    __syncwarp();
    switch (tables.code_bits) {
      case 4:
        list_choices<4>(tables, s, v, lane);
        break;
      case 3:
        list_choices<3>(tables, s, v, lane);
        break;
      default:
        list_choices<2>(tables, s, v, lane);
    }
    __syncwarp();
    float cost = search_paths(s, v, lane / 8, lane % 8, lane);
    int best = lane % 8;
#pragma unroll
    for (int distance = 1; distance < 8; distance *= 2) {
      const float other = __shfl_xor_sync(kFullWarp, cost, distance);
      const int other_start = __shfl_xor_sync(kFullWarp, best, distance);
      if (other < cost || (other == cost && other_start < best)) {
        cost = other;
        best = other_start;
      }
    }
    return best;
  }

  // Both rows of the warp: lane l < 8 goes back along chain l % 4 of row l / 4.
  __device__ static void trace_paths(Search& s, int best0, int best1, int lane) {
    const int chain = lane % 4, v = lane / 4 % 2;
    const int start0 = __shfl_sync(kFullWarp, best0, 8 * chain), start1 = __shfl_sync(kFullWarp, best1, 8 * chain);
    __syncwarp();
    if (lane >= 8) return;
    const int column = 8 * chain + (v == 0 ? start0 : start1), n_groups = chain_length<kDim, kKey>(chain) / 4;
    uint32_t untaken[kGroups];  // complements of the branches, so that the complement of a state is what they are shifted by
#pragma unroll
    for (int group = 0; group < kGroups; ++group) untaken[group] = group < n_groups ? ~s.branches[v][group][column] : 0;
    uint32_t complement = 7 - column % 8;
#pragma unroll
    for (int group = kGroups - 1; group >= 0; --group) {
      if (group >= n_groups) continue;
      uint32_t steps = 0;
#pragma unroll
      for (int j = 3; j >= 0; --j) {
        // This is a chain of dependent operations, two a step: the state before is state >> 1 | branch << 2.
        const uint32_t before = ((untaken[group] >> (24 - 8 * j) & 0xffu) << 2 >> complement & 4u) | complement >> 1;
        const uint32_t state = 7 - complement, branch = 1 - (before >> 2);
        steps |= (trellis_subset(state, branch) | (state & 1u) << 2) << (8 * j);
        complement = before;
      }
      *reinterpret_cast<uint32_t*>(&s.path[v][chain][4 * group]) = steps;
    }
  }

  // Of several scales of y, the one whose levels point closest to y is kept, the first of equals.
  template <int N>
  __device__ static void run(const EncodeTables& tables, Shared& shared, int lane, bool valid, const float (&y)[N], uint8_t (&codes)[N],
                             float (&quantised)[N]) {
    if (tables.n_scales == 0) return run_once(tables, shared, lane, valid, y, codes, quantised);
    float best = -1;
#pragma unroll 1
    for (uint32_t k = 0; k < tables.n_scales; ++k) {
      float scaled[N], tried[N];
      uint8_t tried_codes[N];
#pragma unroll
      for (int i = 0; i < N; ++i) scaled[i] = tables.scales[k] * y[i];
      run_once(tables, shared, lane, valid, scaled, tried_codes, tried);
      const float along = ordered_dot(y, tried), merit = along * along / ordered_dot(tried, tried);
      if (merit <= best) continue;
      best = merit;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        codes[i] = tried_codes[i];
        quantised[i] = tried[i];
      }
    }
  }

  template <int N>
  __device__ static void run_once(const EncodeTables& tables, Shared& shared, int lane, bool valid, const float (&y)[N],
                                  uint8_t (&codes)[N], float (&quantised)[N]) {
    Search& s = shared.warps[threadIdx.x / 32];
    const int v = threadIdx.x / 16 % 2, warp_lane = threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < N; ++i) s.y[v][16 * i + lane] = y[i];
    const uint32_t is_valid = __ballot_sync(kFullWarp, valid);
    const int best0 = is_valid & 1u ? best_start(tables, s, 0, warp_lane) : 0;
    const int best1 = is_valid >> 16 & 1u ? best_start(tables, s, 1, warp_lane) : 0;
    trace_paths(s, best0, best1, warp_lane);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const ChainPosition at = chain_position<kDim, kKey>(16 * i + lane);
      const unsigned step = s.path[v][at.chain][at.element], z = step & 3u;
      const unsigned m = s.choice[v][at.chain][at.element] >> (4 * z) & 7u;
      codes[i] = static_cast<uint8_t>(m | step >> 2 << (tables.code_bits - 1));
      quantised[i] = tables.value[m << 2 | z];
    }
  }
};

template <int kDim, bool kKey>
struct QuantiserOf {
  using type = TrellisQuantiser<kDim, kKey>;
};

}  // namespace

void launch_encode_trellis(EncodePair& pair, cudaStream_t stream, bool overlap) { launch_encode_dims<QuantiserOf>(pair, stream, overlap); }

}  // namespace kvt::cuda
