// Rows of vectors <-> cells of a paged cache tensor: conditioning of keys and exact rows on top of the codec. The only way in and
// out of pages, so that codes, exact rows and conditioning cannot disagree.
#ifndef KVT_PLUGIN_CACHE_ROWS_H
#define KVT_PLUGIN_CACHE_ROWS_H

#include "cache_tensor.h"

namespace kvt::plugin {

inline constexpr int64_t kMaxRowsAtOnce = KVT_PAGE_TOKENS;

// Stores n <= kMaxRowsAtOnce raw rows of one head, row i at src + i * src_stride floats, in cells[i] of a stream.
// One writer for each (page, head) at a time.
void write_rows(CacheTensor* cache, int64_t stream, int64_t head, const float* src, size_t src_stride, size_t n,
                const int64_t* cells);

// Reads n cells of one head as raw rows [n, head_dim].
void read_rows(CacheTensor* cache, int64_t stream, int64_t head, int64_t first_cell, size_t n, float* dst);

}  // namespace kvt::plugin

#endif
