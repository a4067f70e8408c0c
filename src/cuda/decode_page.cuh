// A page's codes -> rows (format.md section 2), from shared memory. A row lies in half a warp as in encode_row.cuh.
#ifndef KVT_CUDA_DECODE_PAGE_CUH
#define KVT_CUDA_DECODE_PAGE_CUH

#include "cuda/cuda_step.h"
#include "cuda/encode_row.cuh"
#include "format/trellis.h"

namespace kvt::cuda {
namespace {

constexpr int kDecodeThreads = 256;

// The eight codes of a token's key line, a nibble each. words: of the token, in its tile's first line.
template <int kDim>
__device__ __forceinline__ uint32_t key_line(const char* words, int line, int bits) {
  constexpr int kRuns = kDim / 32;
  const auto stored = [&](int i) { return *reinterpret_cast<const uint32_t*>(words + i * 64); };
  if (bits == 4) return stored(line);
  if (bits == 2) return stored(line / 2) >> line % 2 * 2 & 0x33333333u;
  if (line >= 4 * kRuns) return stored(line - kRuns) & 0x77777777u;
  const int run = 3 * (line / 4);
  if (line % 4 < 3) return stored(run + line % 4) & 0x77777777u;
  return (stored(run) >> 3 & 0x11111111u) | (stored(run + 1) >> 2 & 0x22222222u) | (stored(run + 2) >> 1 & 0x44444444u);
}

// Level indices of the coordinates 16 i + lane of a token.
template <int kDim, bool kTrellis>
struct KeyIndices {
  static constexpr int N = kDim / 16;

  // Trellis: the word `steps` earlier in the chain of line u (format.md 4.4).
  __device__ static __forceinline__ uint32_t earlier(const char* words, int u, int steps, int bits) {
    const int n_lines = (kDim / 8 - u % 4 + 3) / 4 * 4;
    int at = u - 4 * steps, wraps = 0;
    while (at < 0) {
      at += n_lines;
      ++wraps;
    }
    const uint32_t w = key_line<kDim>(words, at, bits);
    return __funnelshift_l(w, w, 4 * wraps);
  }
  // bits: of a stored code. signs: bit i: the sketch's sign of coordinate i (hybrid).
  __device__ static __forceinline__ void get(const char* page, int token, int lane, int bits, uint32_t mask, int (&index)[N],
                                             uint32_t& signs) {
    const char* words = page + token / 16 * static_cast<int>(KeyPlanes(kDim, bits).tile_bytes()) + token % 16 * 4;
    signs = 0;
    if (!kTrellis && bits == 8) {
#pragma unroll
      for (int i = 0; i < N; ++i) index[i] = static_cast<uint8_t>(words[(4 * i + lane / 4) * 64 + lane % 4]);
      return;
    }
    const int shift = lane % 4 * 8 + lane % 8 / 4 * 4;
    uint32_t w[N];
    if (kTrellis && bits != 4) {
#pragma unroll
      for (int i = 0; i < N; ++i) w[i] = key_line<kDim>(words, 2 * i + lane / 8, bits);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) w[i] = key_line<kDim>(words, 2 * i + lane / 8, 4);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const uint32_t code = w[i] >> shift;
      if constexpr (kTrellis) {
        uint32_t before[3];
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          if constexpr (kDim % 32 == 0) {  // the line is in a register of this lane
            const int at = i - 2 * (k + 1), wraps = at >= 0 ? 0 : (-at + N - 1) / N;
            before[k] = __funnelshift_l(w[at + wraps * N], w[at + wraps * N], 4 * wraps);
          } else {
            before[k] = earlier(words, 2 * i + lane / 8, k + 1, bits);
          }
        }
        const int trellis_bit = shift + bits - 1;
        const uint32_t z1 = (w[i] ^ before[0] ^ before[2]) >> trellis_bit & 1u, z0 = before[1] >> trellis_bit & 1u;
        index[i] = static_cast<int>((code & ((1u << (bits - 1)) - 1)) << 2 | z1 << 1 | z0);
      } else {
        index[i] = static_cast<int>(code & mask);
        signs |= (code >> 3 & 1u) << i;
      }
    }
  }
};

template <int kDim, bool kTrellis>
struct ValueIndices {
  static constexpr int N = kDim / 16, kBlocks = kDim / 64, kRest = kDim % 64 / 16;

  // bits: of a code.
  __device__ static __forceinline__ void get(const char* page, int token, int lane, int bits, int (&index)[N]) {
    const char* at = page + token / 32 * static_cast<int>(ValuePlanes(kDim, bits).group_bytes()) + token % 16 / 4 * 64 + 4 * lane +
                     token % 4;
    const int shift = token % 32 / 16 * 4;
    const auto nibble = [&](int stored_line) { return static_cast<uint32_t>(static_cast<uint8_t>(at[stored_line * 256])) >> shift; };
    uint32_t code[N];
    if (bits == 3) {
#pragma unroll
      for (int h = 0; h < kBlocks; ++h) {
        uint32_t fourth = 0;
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          const uint32_t own = nibble(k * kBlocks + h);
          code[4 * h + k] = own & 7u;
          fourth |= (own >> 3 & 1u) << k;
        }
        code[4 * h + 3] = fourth;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4 * kBlocks; ++i) {
        const int k = i % 4, h = i / 4;
        code[i] = bits == 4 ? nibble(k * kBlocks + h) & 15u : nibble(k / 2 * kBlocks + h) >> k % 2 * 2 & 3u;
      }
    }
#pragma unroll
    for (int j = 0; j < kRest; ++j) {
      code[4 * kBlocks + j] = bits == 2 ? nibble(2 * kBlocks + j / 2) >> j % 2 * 2 & 3u : nibble(bits * kBlocks + j) & (bits == 4 ? 15u : 7u);
    }
    if constexpr (!kTrellis) {
#pragma unroll
      for (int i = 0; i < N; ++i) index[i] = static_cast<int>(code[i]);
    } else {
      // The trellis bits of a chain as a string: four lanes have them.
      constexpr int kLength = kDim / 4;
      constexpr uint64_t kAll = kLength == 64 ? ~uint64_t{0} : (uint64_t{1} << kLength) - 1;
      const auto element = [&](int i) {
        return i < 4 * kBlocks ? i / 4 * 16 + lane % 4 * 4 + i % 4 : 16 * kBlocks + lane % 4 * kRest + (i - 4 * kBlocks);
      };
      uint64_t string = 0;
#pragma unroll
      for (int i = 0; i < N; ++i) string |= uint64_t{code[i] >> (bits - 1)} << element(i);
      string |= __shfl_xor_sync(kFullWarp, string, 1);
      string |= __shfl_xor_sync(kFullWarp, string, 2);
      const auto earlier = [&](int steps) { return (string << steps | string >> (kLength - steps)) & kAll; };
      const uint64_t z1 = string ^ earlier(1) ^ earlier(3), z0 = earlier(2);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int e = element(i);
        index[i] = static_cast<int>((code[i] & ((1u << (bits - 1)) - 1)) << 2 | (z1 >> e & 1u) << 1 | (z0 >> e & 1u));
      }
    }
  }
};

enum class Coding { kHalves, kScalar, kSketch, kTrellis };

// Up to 8 bits for scalar keys, 4 for the others.
template <int kDim, bool kKey, Coding kCoding>
constexpr int kMaxPageBytes = (kKey && kCoding == Coding::kScalar ? 64 : 32) * kDim + 256;

// For a whole block of kDecodeThreads, which has to wait for all of it: the page and the levels' values.
template <bool kKey, Coding kCoding>
__device__ __forceinline__ void load_page(const CodeTables& tables, const char* from, char* page, float (&value)[32]) {
  const int n = static_cast<int>(kKey && kCoding == Coding::kSketch ? tables.residual_offset : tables.norm_offset) + 128;
  for (int i = threadIdx.x; i < n / 16; i += kDecodeThreads)
    reinterpret_cast<uint4*>(page)[i] = reinterpret_cast<const uint4*>(from)[i];
  if (threadIdx.x < 32) value[threadIdx.x] = tables.value[threadIdx.x];
}

// For whole warps: a token for each half. Conditioning is not undone.
template <int kDim, bool kKey, Coding kCoding>
__device__ __forceinline__ void decode_token(const CodeTables& tables, const char* page, const float (&value)[32], int token, int lane,
                                             float (&x)[kDim / 16]) {
  constexpr int N = kDim / 16;
  const int bits = static_cast<int>(tables.code_bits);
  constexpr bool kUniform = kKey && kCoding == Coding::kScalar;  // if 8 bits
  int index[N];
  uint32_t signs = 0;
  if constexpr (kKey) {
    KeyIndices<kDim, kCoding == Coding::kTrellis>::get(page, token, lane, bits, kCoding == Coding::kSketch ? 7u : 15u, index, signs);
  } else {
    ValueIndices<kDim, kCoding == Coding::kTrellis>::get(page, token, lane, kCoding == Coding::kTrellis ? bits : 3, index);
  }
  constexpr float kInverseDim = 1.0f / kDim;
  const float norm = __half2float(reinterpret_cast<const __half*>(page + tables.norm_offset)[token]) * kInverseDim;
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = norm * (kUniform && bits == 8 ? value[0] * static_cast<float>(index[i] - 64) : value[index[i]]);
  if constexpr (kCoding == Coding::kSketch) {
    constexpr float kRootHalfPi = 1.2533141f;
    const float residual =
        __half2float(reinterpret_cast<const __half*>(page + tables.residual_offset)[token]) * (kRootHalfPi * kInverseDim);
    const float unit = residual * (1.0f / sqrtf(static_cast<float>(kDim)));
    float sketch[N];
#pragma unroll
    for (int i = 0; i < N; ++i) sketch[i] = signs >> i & 1u ? -1.0f : 1.0f;
    transform_row(lane, sketch);
    flip_row(tables.signs[1][lane], sketch);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = fmaf(unit, sketch[i], x[i]);
  }
  transform_row(lane, x);
  flip_row(tables.signs[0][lane], x);
}

}  // namespace
}  // namespace kvt::cuda

#endif
