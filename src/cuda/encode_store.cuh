// Codes of up to 32 rows of one head, from shared memory to their cells.
#ifndef KVT_CUDA_ENCODE_STORE_CUH
#define KVT_CUDA_ENCODE_STORE_CUH

#include "cuda/exact_store.cuh"

namespace kvt::cuda {
namespace {

constexpr int kBlockRows = 32;

template <int kDim>
struct EncodedRows {
  int n;                                           // rows of the block; what follows is not set beyond them
  alignas(8) uint8_t codes[kBlockRows][kDim + 8];  // the padding spreads rows over banks
  int64_t cells[kBlockRows];                       // of their streams; -1: nothing to store
  uint32_t streams[kBlockRows];
  uint16_t norm[kBlockRows], residual[kBlockRows];
};

__device__ __forceinline__ char* page_of(const EncodeCall& call, uint32_t stream, int64_t cell) {
  return call.pages + stream * call.stream_stride + blockIdx.y * call.head_stride +
         static_cast<size_t>(cell / kPageTokens) * call.page_stride;
}

template <int kDim>
__device__ void store_norms(const EncodeCall& call, const EncodedRows<kDim>& rows) {
  for (int t = threadIdx.x; t < rows.n; t += kEncodeThreads) {
    const int64_t cell = rows.cells[t];
    if (cell < 0) continue;
    char* page = page_of(call, rows.streams[t], cell);
    reinterpret_cast<uint16_t*>(page + call.norm_offset)[cell % kPageTokens] = rows.norm[t];
    if (call.residual_offset != 0)
      reinterpret_cast<uint16_t*>(page + call.residual_offset)[cell % kPageTokens] = rows.residual[t];
  }
}

// The codes of a key line of eight dims as nibbles.
__device__ __forceinline__ uint32_t line_nibbles(const uint8_t* codes, int line) {
  const uint2 bytes = *reinterpret_cast<const uint2*>(codes + 8 * line);
  return bytes.x | bytes.y << 4;
}

// The word of one token in a stored key line (format.md 4.1, 4.3).
template <int kDim, int kBits>
__device__ __forceinline__ uint32_t key_word(const uint8_t* codes, int line) {
  constexpr int kRuns = kDim / 32, kRest = kDim % 32 / 8;
  if constexpr (kBits == 8) return reinterpret_cast<const uint32_t*>(codes)[line];
  if constexpr (kBits == 4) return line_nibbles(codes, line);
  if constexpr (kBits == 3) {
    if (line >= 3 * kRuns) return line_nibbles(codes, 4 * kRuns + line - 3 * kRuns);
    const int run = line / 3, i = line % 3;
    return line_nibbles(codes, 4 * run + i) | (line_nibbles(codes, 4 * run + 3) >> i & 0x11111111u) << 3;
  }
  const int first = 2 * line;  // of the two lines that are stored as one, runs and rest alike
  return line_nibbles(codes, first) | (first + 1 < 4 * kRuns + kRest ? line_nibbles(codes, first + 1) << 2 : 0);
}

// A word is one token's, so rows never share one. Neighbouring threads take neighbouring rows.
template <int kBits, int kDim>
__device__ void store_keys(const EncodeCall& call, const EncodedRows<kDim>& rows) {
  constexpr int kLines = KeyPlanes(kDim, kBits).stored_lines();
  const bool is_full = rows.n == kBlockRows;
  for (int i = threadIdx.x; i < rows.n * kLines; i += kEncodeThreads) {
    const int t = is_full ? i % kBlockRows : i / kLines, line = is_full ? i / kBlockRows : i % kLines;
    const int64_t cell = rows.cells[t];
    if (cell < 0) continue;
    const size_t at = KeyPlanes(kDim, kBits).offset(static_cast<unsigned>(cell % kPageTokens), line, 0);
    *reinterpret_cast<uint32_t*>(page_of(call, rows.streams[t], cell) + at) = key_word<kDim, kBits>(rows.codes[t], line);
  }
}

// The nibble of one token in word w of stored value line `line`: of the 64-dim blocks, [stored line][block], then the rest lines.
template <int kDim, int kBits>
__device__ __forceinline__ uint32_t value_nibble(const uint8_t* codes, int line, int w) {
  constexpr int kBlocks = kDim / 64, kRest = kDim % 64 / 16;
  const bool is_rest = line >= kBits * kBlocks;
  const int j = line - kBits * kBlocks, k = line / kBlocks, h = line % kBlocks;
  if constexpr (kBits == 2) {  // two subgroups in one nibble
    const uint8_t* first = codes + w + (is_rest ? 64 * kBlocks + 32 * j : 64 * h + 32 * k);
    return first[0] | (is_rest && 2 * j + 1 >= kRest ? 0u : static_cast<uint32_t>(first[16]) << 2);
  }
  if (is_rest) return codes[64 * kBlocks + 16 * j + w];
  const uint32_t own = codes[64 * h + 16 * k + w];
  return kBits == 3 ? own | (codes[64 * h + 48 + w] >> k & 1u) << 3 : own;
}

template <int kBits, int kDim>
__device__ void store_values(const EncodeCall& call, const EncodedRows<kDim>& rows) {
  constexpr int kGroupBytes = ValuePlanes(kDim, kBits).group_bytes(), kLines = kGroupBytes / 256;
  // A whole group of 32 tokens in order is stored in whole words.
  const int own = threadIdx.x % kBlockRows;
  const bool whole = rows.n == kBlockRows && rows.cells[0] >= 0 && rows.cells[0] % kBlockRows == 0 &&
                     __all_sync(0xffffffffu, rows.cells[own] == rows.cells[0] + own && rows.streams[own] == rows.streams[0]);
  if (whole) {
    char* group = page_of(call, rows.streams[0], rows.cells[0]) + rows.cells[0] % kPageTokens / kBlockRows * kGroupBytes;
    for (int i = threadIdx.x; i < kLines * 64; i += kEncodeThreads) {
      const int w = i % 16, c = i / 16 % 4, line = i / 64;
      uint32_t word = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        word |= value_nibble<kDim, kBits>(rows.codes[4 * c + b], line, w) << (8 * b);
        word |= value_nibble<kDim, kBits>(rows.codes[16 + 4 * c + b], line, w) << (8 * b + 4);
      }
      reinterpret_cast<uint32_t*>(group)[i] = word;
    }
    return;
  }
  // Otherwise each row owns one nibble of a word that seven other tokens share: it is cleared, then set. Nothing is read, so nothing is
  // waited for; operations of one thread on one word keep their order.
  for (int i = threadIdx.x; i < rows.n * kLines * 16; i += kEncodeThreads) {
    const int w = i % 16, line = i / 16 % kLines, t = i / (16 * kLines);
    const int64_t cell = rows.cells[t];
    if (cell < 0) continue;
    const unsigned slot = static_cast<unsigned>(cell % kPageTokens);
    char* at = page_of(call, rows.streams[t], cell) + slot / 32 * kGroupBytes + line * 256 + slot % 16 / 4 * 64 + 4 * w;
    const unsigned shift = slot % 4 * 8 + slot % 32 / 16 * 4;
    auto* word = reinterpret_cast<uint32_t*>(at);
    const uint32_t code = value_nibble<kDim, kBits>(rows.codes[t], line, w);
    if (code != 15) atomicAnd(word, ~(15u << shift));
    if (code != 0) atomicOr(word, code << shift);
  }
}

template <bool kKey, int kBits, int kDim>
__device__ __forceinline__ void store_codes(const EncodeCall& call, const EncodedRows<kDim>& rows) {
  if constexpr (kKey) {
    store_keys<kBits>(call, rows);
  } else {
    store_values<kBits>(call, rows);
  }
}

}  // namespace
}  // namespace kvt::cuda

#endif
