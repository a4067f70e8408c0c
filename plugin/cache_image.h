// The f16 image of a cache tensor in state kPages: values in and out, for hosts that save, restore, copy or shift a cache.
//
// Writing keeps what does not change: a cell whose decoded values equal the new ones keeps its codes. So a restore in place, or
// a shift that leaves most cells alone, loses nothing where nothing happened.
#ifndef KVT_PLUGIN_CACHE_IMAGE_H
#define KVT_PLUGIN_CACHE_IMAGE_H

#include "cache_tensor.h"

namespace kvt::plugin {

// Rows first .. first + n_rows - 1 of the image <-> dense rows of n_values fp16 at dst or src. The work is cut into n_parts
// shares by page and head; the shares may run at the same time (a page is written by one of them only).
void image_decode(CacheTensor* cache, int64_t first_row, int64_t n_rows, ggml_fp16_t* dst, int part, int n_parts);
void image_encode(CacheTensor* cache, int64_t first_row, int64_t n_rows, const ggml_fp16_t* src, int part, int n_parts);

// As image_encode, for a row that arrives, in the order in which they were written once: it becomes the newest one too. is_first: it is
// one of the first of its sequence.
void image_write(CacheTensor* cache, int64_t row, const ggml_fp16_t* src, bool is_first);

// Bytes offset .. offset + size - 1 of the image, in any state.
void image_get(CacheTensor* cache, size_t offset, size_t size, void* dst);
void image_set(CacheTensor* cache, size_t offset, size_t size, const void* src);
void image_fill(CacheTensor* cache, size_t offset, size_t size, uint8_t value);

// Rows dst_row .. of dst become rows src_row .. of src, by copying codes. Returns false, and does nothing, unless both have the
// same page layout and the ranges are whole pages.
bool image_copy_pages(CacheTensor* src, int64_t src_row, CacheTensor* dst, int64_t dst_row, int64_t n_rows);

}  // namespace kvt::plugin

#endif
