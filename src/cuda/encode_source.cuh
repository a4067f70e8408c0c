// Where the rows of an encode call come from and where they go: row, cell, stream.
#ifndef KVT_CUDA_ENCODE_SOURCE_CUH
#define KVT_CUDA_ENCODE_SOURCE_CUH

#include "cuda/cuda_encode.h"

namespace kvt::cuda {
namespace {

struct CellPlace {
  int64_t cell;  // of its stream; negative: the row is skipped
  uint32_t stream;
};
__device__ __forceinline__ CellPlace place_of_row(const EncodeCall& call, uint32_t row) {
  const int64_t listed = call.cells_type == KVT_CUDA_I32 ? static_cast<const int32_t*>(call.cells)[row]
                                                         : static_cast<const int64_t*>(call.cells)[row];
  const int64_t cell = listed + call.cell_offset;
  if (cell < 0) return {-1, 0};
  if (call.cells_per_stream == 0 || cell < call.cells_per_stream) return {cell, 0};
  if (cell >> 32 == 0) {  // a division of 64 bits takes several times as long
    const auto narrow = static_cast<uint32_t>(cell), of_stream = static_cast<uint32_t>(call.cells_per_stream);
    return {narrow % of_stream, narrow / of_stream};
  }
  const int64_t stream = cell / call.cells_per_stream;
  return {cell - stream * call.cells_per_stream, static_cast<uint32_t>(stream)};
}
__device__ __forceinline__ size_t source_offset(const EncodeCall& call, uint32_t row, uint32_t head) {
  return row * call.src_row_stride + head * call.src_head_stride;
}

}  // namespace
}  // namespace kvt::cuda

#endif
