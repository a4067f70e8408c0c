// For engines whose keys and values are computed, not given: rows that are not finite are stored as NaN norms instead of being
// refused (format.md section 5, step 2), as an fp16 cache would keep them.
#ifndef KVT_API_ENGINE_ENCODE_H
#define KVT_API_ENGINE_ENCODE_H

#include "kvturbo/kvturbo.h"

namespace kvt_internal {

// As kvt_encode, without its checks: the arguments must be valid.
void encode_unchecked(const kvt_codec* codec, kvt_side side, const float* src, size_t src_stride, size_t n_rows,
                      const int64_t* cells, void* pages, size_t page_stride);

// fp32 <-> fp16 bits, rounded to nearest even; n: a multiple of 16.
void floats_to_halves(const kvt_codec* codec, const float* from, size_t n, uint16_t* to);
void halves_to_floats(const kvt_codec* codec, const uint16_t* from, size_t n, float* to);

}  // namespace kvt_internal

#endif
