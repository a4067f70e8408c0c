// For engines whose keys and values are computed, not given: rows that are not finite are stored as NaN norms instead of being
// refused (format.md section 5, step 2), as an fp16 cache would keep them.
#ifndef KVT_API_ENGINE_ENCODE_H
#define KVT_API_ENGINE_ENCODE_H

#include "kvturbo/kvturbo.h"

namespace kvt_internal {

// As kvt_encode, without its checks: the arguments must be valid.
void encode_unchecked(const kvt_codec* codec, kvt_side side, const float* src, size_t src_stride, size_t n_rows,
                      const int64_t* cells, void* pages, size_t page_stride);

// The codes [head_dim] and norms of one cell, as read_codes has them (norms: the norm, then the residual if the codec has one). pages:
// the first page. Written codes must be valid ones; norms may be any.
void read_cell(const kvt_codec* codec, kvt_side side, const void* pages, size_t page_stride, int64_t cell, uint8_t* codes, uint16_t* norms);
void write_cell(const kvt_codec* codec, kvt_side side, void* pages, size_t page_stride, int64_t cell, const uint8_t* codes,
                const uint16_t* norms);

// fp32 <-> fp16 bits, rounded to nearest even; n: a multiple of 16.
void floats_to_halves(const kvt_codec* codec, const float* from, size_t n, uint16_t* to);
void halves_to_floats(const kvt_codec* codec, const uint16_t* from, size_t n, float* to);

}  // namespace kvt_internal

#endif
