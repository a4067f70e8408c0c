// Codes of up to 32 rows of one head, from shared memory to their cells.
#ifndef KVT_CUDA_ENCODE_STORE_CUH
#define KVT_CUDA_ENCODE_STORE_CUH

#include "cuda/exact_store.cuh"

namespace kvt::cuda {
namespace {


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

// Nibble planes: a word is one token's eight dims, so rows never share one. Neighbouring threads take neighbouring rows.
template <int kDim>
__device__ void store_keys(const EncodeCall& call, const EncodedRows<kDim>& rows) {
  constexpr int kLines = kDim / 8;
  const bool is_full = rows.n == kBlockRows;
  for (int i = threadIdx.x; i < rows.n * kLines; i += kEncodeThreads) {
    const int t = is_full ? i % kBlockRows : i / kLines, line = is_full ? i / kBlockRows : i % kLines;
    const int64_t cell = rows.cells[t];
    if (cell < 0) continue;
    const uint2 codes = *reinterpret_cast<const uint2*>(&rows.codes[t][8 * line]);
    const size_t at = KeyPlanes(kDim, 4).offset(static_cast<unsigned>(cell % kPageTokens), line, 0);
    *reinterpret_cast<uint32_t*>(page_of(call, rows.streams[t], cell) + at) = codes.x | codes.y << 4;
  }
}

// The nibble of one token in word w of value line `line`: lines k = 0..2 of the 64-dim blocks, [k][h], then the rest lines.
template <int kDim>
__device__ __forceinline__ uint32_t value_nibble(const uint8_t* codes, int line, int w) {
  constexpr int kBlocks = kDim / 64;
  if (line >= 3 * kBlocks) return codes[64 * kBlocks + 16 * (line - 3 * kBlocks) + w];
  const int k = line / kBlocks, h = line % kBlocks;
  return codes[64 * h + 16 * k + w] | (codes[64 * h + 48 + w] >> k & 1u) << 3;
}

template <int kDim>
__device__ void store_values(const EncodeCall& call, const EncodedRows<kDim>& rows) {
  constexpr int kLines = 3 * (kDim / 64) + kDim % 64 / 16, kGroupBytes = kLines * 256;
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
        word |= value_nibble<kDim>(rows.codes[4 * c + b], line, w) << (8 * b);
        word |= value_nibble<kDim>(rows.codes[16 + 4 * c + b], line, w) << (8 * b + 4);
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
    const uint32_t code = value_nibble<kDim>(rows.codes[t], line, w);
    if (code != 15) atomicAnd(word, ~(15u << shift));
    if (code != 0) atomicOr(word, code << shift);
  }
}

}  // namespace
}  // namespace kvt::cuda

#endif
