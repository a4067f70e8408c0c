#include "cache_rows.h"

#include <cstring>

#include "api/engine_encode.h"

namespace kvt::plugin {

void write_rows(CacheTensor* cache, int64_t stream, int64_t head, const float* src, size_t src_stride, size_t n,
                const int64_t* cells) {
  const auto d = static_cast<size_t>(cache->head_dim());
  float conditioned[kMaxRowsAtOnce * KVT_MAX_HEAD_DIM];
  if (cache->conditioner() != nullptr) {
    for (size_t i = 0; i < n; ++i) cache->conditioner()->apply(head, src + i * src_stride, conditioned + i * d);
    src = conditioned;
    src_stride = d;
  }
  kvt_internal::encode_unchecked(cache->codec(), cache->side(), src, src_stride, n, cells, cache->head_pages(stream, head),
                                 cache->page_stride());
  for (size_t i = 0; i < n; ++i) {
    if (cells[i] < cache->n_exact()) {
      host().ggml_fp32_to_fp16_row(src + i * src_stride, cache->exact_row(stream, head, cells[i]), cache->head_dim());
    }
  }
}

void read_rows(CacheTensor* cache, int64_t stream, int64_t head, int64_t first_cell, size_t n, float* dst) {
  const auto d = static_cast<size_t>(cache->head_dim());
  kvt_decode(cache->codec(), cache->side(), cache->head_pages(stream, head), cache->page_stride(),
             static_cast<size_t>(first_cell), n, dst, d);
  for (size_t i = 0; i < n; ++i) {
    const int64_t cell = first_cell + static_cast<int64_t>(i);
    if (cell < cache->n_exact()) host().ggml_fp16_to_fp32_row(cache->exact_row(stream, head, cell), dst + i * d, cache->head_dim());
    if (cache->conditioner() != nullptr) cache->conditioner()->undo(head, dst + i * d);
  }
}

}  // namespace kvt::plugin
