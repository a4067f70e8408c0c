#include "stage_pieces.h"

namespace kvt::plugin {
namespace {

constexpr unsigned kThreads = 256;

uint32_t count_words(const StagedPiece& piece) { return piece.n[0] * piece.n[1] * piece.n[2] * piece.n[3]; }

// blockIdx.y: piece.
__global__ void __launch_bounds__(kThreads) stage_kernel(const __grid_constant__ StagedPieces pieces) {
  const StagedPiece& piece = pieces.piece[blockIdx.y];
  const uint32_t n_words = piece.n[0] * piece.n[1] * piece.n[2] * piece.n[3];
  auto* to = reinterpret_cast<uint32_t*>(pieces.slots + *pieces.number * pieces.slot_bytes + piece.offset);
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < n_words; i += gridDim.x * kThreads) {
    const uint32_t row = i / piece.n[0], rest = row / piece.n[1];
    const char* from = static_cast<const char*>(piece.src) + row % piece.n[1] * piece.stride[0] + rest % piece.n[2] * piece.stride[1] +
                       rest / piece.n[2] * piece.stride[2];
    to[i] = reinterpret_cast<const uint32_t*>(from)[i % piece.n[0]];
  }
}

__global__ void add_one_kernel(uint32_t* number) { ++*number; }

}  // namespace

void launch_stage(const StagedPieces& pieces, cudaStream_t stream) {
  constexpr uint32_t kWordsOfBlock = 4 * kThreads, kMostBlocks = 64;
  uint32_t n_pieces = 0, most_words = 1;
  for (const StagedPiece& piece : pieces.piece) {
    if (count_words(piece) == 0) break;
    ++n_pieces;
    most_words = count_words(piece) > most_words ? count_words(piece) : most_words;
  }
  if (n_pieces == 0) return;
  const uint32_t n_blocks = (most_words + kWordsOfBlock - 1) / kWordsOfBlock;
  stage_kernel<<<dim3(n_blocks < kMostBlocks ? n_blocks : kMostBlocks, n_pieces), kThreads, 0, stream>>>(pieces);
}

void launch_add_one(uint32_t* number, cudaStream_t stream) { add_one_kernel<<<1, 1, 0, stream>>>(number); }

}  // namespace kvt::plugin
