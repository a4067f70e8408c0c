// What a node of the host's graph has to do with compressed caches.
#ifndef KVT_PLUGIN_PAGED_NODES_H
#define KVT_PLUGIN_PAGED_NODES_H

#include <map>

#include "cache_tensor.h"

namespace kvt::plugin {

// The cache that t lies in, if that is in pages; else nullptr.
CacheTensor* paged_cache_of(const ggml_tensor* t);

// Whether a node computes with a paged cache.
bool touches_pages(const ggml_tensor* node);

// Rows of caches, whole, and where they lie in scratch memory.
struct RowRange {
  int64_t begin, end;
  size_t scratch_offset;
};

// The rows of paged caches that a node reads or writes. Scratch offsets are one behind the other, multiples of alignment.
std::map<CacheTensor*, RowRange> row_ranges_of(const ggml_tensor* node, size_t alignment, size_t* scratch_bytes);

// A shift of positions happens now and then. Other operations on a decoded cache may come with every token, and the user should
// know: says so.
void say_if_slow(const ggml_tensor* node);

}  // namespace kvt::plugin

#endif
