// Arguments of the GPU library's functions, for caches and nodes of the host.
#ifndef KVT_PLUGIN_CUDA_CALLS_H
#define KVT_PLUGIN_CUDA_CALLS_H

#include <vector>

#include "cache_tasks.h"
#include "kvturbo/kvturbo_cuda.h"

namespace kvt::plugin {

// The exact rows of a cache from a stream and head on; with_ring: the newest rows too. Empty for f16.
kvt_cuda_exact_rows exact_rows_of(const CacheTensor& cache, size_t stream, size_t head, bool with_ring);
bool has_exact_rows(const CacheTensor& cache);

// Whether the kernels read a node's rows and their numbers as they are.
bool can_encode(const ggml_tensor* set_rows);
// SET_ROWS, without exact rows.
kvt_cuda_encode_args encode_args_of(const CacheTensor& cache, const ggml_tensor* set_rows);
// f16 rows of all heads, dense at rows, for the cells from first_row on; numbers: 0, 1, 2 ... on the device.
kvt_cuda_encode_args encode_args_of(const CacheTensor& cache, int64_t first_row, int64_t n_rows, const void* rows, const int32_t* numbers);

// The numbers of rows, as they lie in memory.
std::vector<int64_t> row_numbers(const char* bytes, kvt_cuda_index_type type, int64_t n_rows);

// Rows begin .. end - 1 of them.
kvt_cuda_encode_args part_of(const kvt_cuda_encode_args& args, int64_t begin, int64_t end);

// Cells of a stream to rows like those of the image.
kvt_cuda_decode_args decode_args_of(const CacheTensor& cache, int64_t stream, int64_t n_streams, int64_t first_cell, int64_t n_cells,
                                    void* dst);

// Attention without a step, exact rows and slopes.
kvt_cuda_attention attention_args_of(const AttendTask& task);

}  // namespace kvt::plugin

#endif
