// Rows of vectors <-> cells of a paged cache tensor: conditioning of keys and exact rows on top of the codec. The only way in and
// out of pages, so that codes, exact rows and conditioning cannot disagree.
#ifndef KVT_PLUGIN_CACHE_ROWS_H
#define KVT_PLUGIN_CACHE_ROWS_H

#include "cache_tensor.h"

namespace kvt::plugin {

inline constexpr int64_t kMaxRowsAtOnce = KVT_PAGE_TOKENS;

// Stores the codes, and the first exact rows, of n <= kMaxRowsAtOnce raw rows of one head, row i at src + i * src_stride floats, in
// cells[i] of a stream. Rows are rounded to fp16 first, as the host's own cache does, so that a saved cache is restored to the same
// codes. One writer for each (page, head) at a time.
void encode_cells(CacheTensor* cache, int64_t stream, int64_t head, const float* src, size_t src_stride, size_t n,
                  const int64_t* cells);

// For keys that are conditioned: gives the run of cells that cell lies in a mean, if it has none. Call it before the first key of a run
// is stored, when the keys of the run before are. One writer for each head at a time.
void begin_mean(CacheTensor* cache, int64_t stream, int64_t head, int64_t cell);

// As encode_cells, for rows that change in place: cells that have entries among the newest rows keep them, with the new rows.
void replace_cells(CacheTensor* cache, int64_t stream, int64_t head, const float* src, size_t src_stride, size_t n,
                   const int64_t* cells);

// Reads n cells of one head as raw rows [n, head_dim].
void read_rows(CacheTensor* cache, int64_t stream, int64_t head, int64_t first_cell, size_t n, float* dst);

}  // namespace kvt::plugin

#endif
