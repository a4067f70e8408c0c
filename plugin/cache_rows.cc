#include "cache_rows.h"

#include <algorithm>
#include <cstring>

#include "api/engine_encode.h"

namespace kvt::plugin {

void encode_cells(CacheTensor* cache, int64_t stream, int64_t head, const float* src, size_t src_stride, size_t n,
                  const int64_t* cells) {
  const auto d = static_cast<size_t>(cache->head_dim());
  float rows[kMaxRowsAtOnce * KVT_MAX_HEAD_DIM];
  for (size_t i = 0; i < n; ++i) {
    ggml_fp16_t half[KVT_MAX_HEAD_DIM];
    float* row = rows + i * d;
    kvt_internal::floats_to_halves(cache->codec(), src + i * src_stride, d, half);
    if (cells[i] < cache->n_exact()) std::memcpy(cache->exact_row(stream, head, cells[i]), half, d * sizeof(ggml_fp16_t));
    kvt_internal::halves_to_floats(cache->codec(), half, d, row);
  }
  if (cache->conditioner() != nullptr) cache->conditioner()->apply(stream, head, cells, n, rows);
  kvt_internal::encode_unchecked(cache->codec(), cache->side(), rows, d, n, cells, cache->head_pages(stream, head),
                                 cache->page_stride());
}

void begin_mean(CacheTensor* cache, int64_t stream, int64_t head, int64_t cell) {
  KeyMeans* means = &cache->conditioner()->means();
  if (!means->is_new(stream, head, cell)) return;
  const auto d = static_cast<size_t>(cache->head_dim());
  const int64_t run_end = cell / KeyMeans::kCells * KeyMeans::kCells, end = run_end - KeyMeans::kUnsettledCells;
  float sum[2][KVT_MAX_HEAD_DIM] = {};  // of all keys of the run before, of the newest
  int64_t n[2] = {0, 0};
  float rows[KVT_PAGE_TOKENS * KVT_MAX_HEAD_DIM];
  for (int64_t first = std::max(run_end - KeyMeans::kCells, cache->n_exact()); first < end;) {
    const int64_t page_end = std::min(end, (first / KVT_PAGE_TOKENS + 1) * KVT_PAGE_TOKENS);
    kvt_decode(cache->codec(), KVT_KEY, cache->head_pages(stream, head), cache->page_stride(), static_cast<size_t>(first),
               static_cast<size_t>(page_end - first), rows, d);
    for (int64_t i = first; i < page_end; ++i) {
      const float* row = rows + static_cast<size_t>(i - first) * d;
      if (std::all_of(row, row + d, [](float x) { return x == 0; })) continue;  // an empty cell
      for (const int which : {0, 1}) {
        if (which == 1 && i < end - KeyMeans::kNewestCells) continue;
        for (size_t c = 0; c < d; ++c) sum[which][c] += row[c];
        ++n[which];
      }
    }
    first = page_end;
  }
  for (const int which : {0, 1}) {
    for (size_t c = 0; c < d; ++c) sum[which][c] /= static_cast<float>(std::max<int64_t>(1, n[which]));
    if (run_end > 0) cache->conditioner()->undo(stream, head, run_end - 1, sum[which]);
  }
  means->predict(stream, head, cell, {sum[0], sum[1], n[0], n[1]});
}

void replace_cells(CacheTensor* cache, int64_t stream, int64_t head, const float* src, size_t src_stride, size_t n,
                   const int64_t* cells) {
  encode_cells(cache, stream, head, src, src_stride, n, cells);
  for (size_t i = 0; cache->recent() != nullptr && i < n; ++i) {
    ggml_fp16_t* row = cache->recent()->row(static_cast<size_t>(stream), static_cast<size_t>(head), static_cast<int32_t>(cells[i]));
    if (row != nullptr) host().ggml_fp32_to_fp16_row(src + i * src_stride, row, cache->head_dim());
  }
}

void read_rows(CacheTensor* cache, int64_t stream, int64_t head, int64_t first_cell, size_t n, float* dst) {
  const auto d = static_cast<size_t>(cache->head_dim());
  kvt_decode(cache->codec(), cache->side(), cache->head_pages(stream, head), cache->page_stride(),
             static_cast<size_t>(first_cell), n, dst, d);
  for (size_t i = 0; i < n; ++i) {
    const int64_t cell = first_cell + static_cast<int64_t>(i);
    const ggml_fp16_t* exact = cell < cache->n_exact() ? cache->exact_row(stream, head, cell) : nullptr;
    if (exact == nullptr && cache->recent() != nullptr) {
      exact = cache->recent()->row(static_cast<size_t>(stream), static_cast<size_t>(head), static_cast<int32_t>(cell));
    }
    if (exact != nullptr) {
      host().ggml_fp16_to_fp32_row(exact, dst + i * d, cache->head_dim());
    } else if (cache->conditioner() != nullptr) {
      cache->conditioner()->undo(stream, head, cell, dst + i * d);
    }
  }
}

}  // namespace kvt::plugin
