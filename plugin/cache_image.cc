#include "cache_image.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cache_rows.h"
#include "graph_runner.h"
#include "state_rows.h"

namespace kvt::plugin {
namespace {

constexpr int64_t kPageTokens = KVT_PAGE_TOKENS;

// Rows of one page of one stream.
struct RowChunk {
  int64_t stream, cell, n_rows;
};

// The longest chunk that begins at row and has at most max_rows.
RowChunk chunk_at(const CacheTensor& cache, int64_t row, int64_t max_rows) {
  const int64_t cell = row % cache.n_cells();
  const int64_t to_page_end = std::min(kPageTokens - cell % kPageTokens, cache.n_cells() - cell);
  return {row / cache.n_cells(), cell, std::min(to_page_end, max_rows)};
}

// Values of a chunk, one head: [n_rows][head_dim].
struct HeadValues {
  std::vector<float> fp32;
  std::vector<ggml_fp16_t> fp16;
  explicit HeadValues(int64_t head_dim)
      : fp32(static_cast<size_t>(kPageTokens * head_dim)), fp16(static_cast<size_t>(kPageTokens * head_dim)) {}
};

void decode_head(CacheTensor* cache, const RowChunk& chunk, int64_t head, HeadValues* values) {
  read_rows(cache, chunk.stream, head, chunk.cell, static_cast<size_t>(chunk.n_rows), values->fp32.data());
  host().ggml_fp32_to_fp16_row(values->fp32.data(), values->fp16.data(), chunk.n_rows * cache->head_dim());
}

// Stores the rows of new_rows (row stride n_values) that differ from what the cells decode to.
void encode_head(CacheTensor* cache, const RowChunk& chunk, int64_t head, const ggml_fp16_t* new_rows, HeadValues* values) {
  const auto d = static_cast<size_t>(cache->head_dim());
  decode_head(cache, chunk, head, values);
  int64_t cells[KVT_PAGE_TOKENS];
  size_t n_changed = 0;
  for (int64_t i = 0; i < chunk.n_rows; ++i) {
    const ggml_fp16_t* row = new_rows + i * cache->n_values() + head * cache->head_dim();
    if (std::memcmp(row, values->fp16.data() + static_cast<size_t>(i) * d, d * sizeof(ggml_fp16_t)) == 0) continue;
    host().ggml_fp16_to_fp32_row(row, values->fp32.data() + n_changed * d, cache->head_dim());
    cells[n_changed++] = chunk.cell + i;
  }
  if (n_changed == 0) return;
  if (cache->conditioner() != nullptr) begin_mean(cache, chunk.stream, head, chunk.cell);  // a chunk lies in one page
  replace_cells(cache, chunk.stream, head, values->fp32.data(), d, n_changed, cells);
}

}  // namespace

void image_decode(CacheTensor* cache, int64_t first_row, int64_t n_rows, ggml_fp16_t* dst, int part, int n_parts) {
  HeadValues values(cache->head_dim());
  const auto d = static_cast<size_t>(cache->head_dim());
  int64_t n_units = 0;
  for (int64_t done = 0; done < n_rows;) {
    const RowChunk chunk = chunk_at(*cache, first_row + done, n_rows - done);
    for (int64_t head = 0; head < cache->n_heads(); ++head, ++n_units) {
      if (n_units % n_parts != part) continue;
      decode_head(cache, chunk, head, &values);
      for (int64_t i = 0; i < chunk.n_rows; ++i) {
        std::memcpy(dst + (done + i) * cache->n_values() + head * cache->head_dim(),
                    values.fp16.data() + static_cast<size_t>(i) * d, d * sizeof(ggml_fp16_t));
      }
    }
    done += chunk.n_rows;
  }
}

void image_encode(CacheTensor* cache, int64_t first_row, int64_t n_rows, const ggml_fp16_t* src, int part, int n_parts) {
  HeadValues values(cache->head_dim());
  for (int64_t done = 0; done < n_rows;) {
    const RowChunk chunk = chunk_at(*cache, first_row + done, n_rows - done);
    // One writer for each head of a stream: keys may begin a mean.
    for (int64_t head = 0; head < cache->n_heads(); ++head) {
      if ((chunk.stream + head) % n_parts == part) encode_head(cache, chunk, head, src + done * cache->n_values(), &values);
    }
    done += chunk.n_rows;
  }
}

void image_write(CacheTensor* cache, int64_t row, const ggml_fp16_t* src, bool is_first) {
  image_encode(cache, row, 1, src, 0, 1);
  RecentRows* recent = cache->recent();
  const auto stream = static_cast<size_t>(row / cache->n_cells());
  const auto cell = static_cast<int32_t>(row % cache->n_cells());
  if (recent == nullptr || cell < cache->n_exact()) return;  // exact anyhow
  const auto d = static_cast<size_t>(cache->head_dim());
  recent->append(stream, cell, is_first);
  for (size_t head = 0; head < static_cast<size_t>(cache->n_heads()); ++head) {
    std::memcpy(recent->row(stream, head, cell), src + head * d, d * sizeof(ggml_fp16_t));
  }
}

namespace {

// Calls piece(first_row, n_rows, offset of the range in those rows, bytes of the range in them, bytes of the range before
// them).
template <typename Piece>
void for_row_pieces(const CacheTensor& cache, size_t offset, size_t size, Piece piece) {
  const size_t row_bytes = cache.row_bytes();
  for (size_t done = 0; done < size;) {
    const size_t at = offset + done;
    const auto first_row = static_cast<int64_t>(at / row_bytes);
    const size_t skip = at % row_bytes;
    const auto n_rows = static_cast<int64_t>(
        std::min<size_t>(static_cast<size_t>(kPageTokens), (skip + (size - done) + row_bytes - 1) / row_bytes));
    const size_t bytes = std::min(size - done, static_cast<size_t>(n_rows) * row_bytes - skip);
    piece(first_row, n_rows, skip, bytes, done);
    done += bytes;
  }
}

struct RowRange {
  int64_t first, n;
};

RowRange rows_of_bytes(const CacheTensor& cache, size_t offset, size_t size) {
  const auto first = static_cast<int64_t>(offset / cache.row_bytes());
  return {first, static_cast<int64_t>((offset + size + cache.row_bytes() - 1) / cache.row_bytes()) - first};
}

}  // namespace

void image_get(CacheTensor* cache, size_t offset, size_t size, void* dst) {
  if (cache->device_rows() != nullptr) {
    finish_all_graphs();
    cache->device_rows()->read(offset, size, dst);
    return;
  }
  if (cache->state() != CacheTensor::State::kPages) {
    if (cache->is_image_open()) {
      std::memcpy(dst, cache->image() + offset, size);
    } else {
      std::memset(dst, 0, size);
    }
    return;
  }
  state_settle(cache);
  const RowRange range = rows_of_bytes(*cache, offset, size);
  const HostSide host_side(cache, range.first, range.n, HostSide::For::kReading);
  std::vector<ggml_fp16_t> rows(static_cast<size_t>(kPageTokens * cache->n_values()));
  for_row_pieces(*cache, offset, size, [&](int64_t first_row, int64_t n_rows, size_t skip, size_t bytes, size_t done) {
    state_get_rows(cache, first_row, n_rows, rows.data());
    std::memcpy(static_cast<char*>(dst) + done, reinterpret_cast<const char*>(rows.data()) + skip, bytes);
  });
}

namespace {

// source(done, bytes, where) puts bytes done .. done + bytes - 1 of the new contents at where.
template <typename Source>
void write_range(CacheTensor* cache, size_t offset, size_t size, Source source) {
  if (cache->device_rows() != nullptr) {
    std::vector<char> bytes(size);
    source(0, size, bytes.data());
    finish_all_graphs();
    cache->device_rows()->write(offset, size, bytes.data());
    return;
  }
  if (cache->state() != CacheTensor::State::kPages) {
    if (cache->open_image()) source(0, size, cache->image() + offset);
    return;
  }
  cache->set_written();
  const RowRange range = rows_of_bytes(*cache, offset, size);
  const HostSide host_side(cache, range.first, range.n, HostSide::For::kWriting);
  std::vector<ggml_fp16_t> rows(static_cast<size_t>(kPageTokens * cache->n_values()));
  for_row_pieces(*cache, offset, size, [&](int64_t first_row, int64_t n_rows, size_t skip, size_t bytes, size_t done) {
    const bool has_partial_row = skip != 0 || bytes % cache->row_bytes() != 0;
    if (has_partial_row) state_settle(cache);
    if (has_partial_row) image_decode(cache, first_row, n_rows, rows.data(), 0, 1);
    source(done, bytes, reinterpret_cast<char*>(rows.data()) + skip);
    state_set_rows(cache, first_row, n_rows, rows.data());
  });
}

}  // namespace

void image_set(CacheTensor* cache, size_t offset, size_t size, const void* src) {
  write_range(cache, offset, size,
              [&](size_t done, size_t bytes, char* where) { std::memcpy(where, static_cast<const char*>(src) + done, bytes); });
}

void image_fill(CacheTensor* cache, size_t offset, size_t size, uint8_t value) {
  if (value == 0 && offset == 0 && size == cache->image_bytes()) {
    cache->zero();
    return;
  }
  state_settle(cache);
  write_range(cache, offset, size, [&](size_t, size_t bytes, char* where) { std::memset(where, value, bytes); });
}

bool image_copy_pages(CacheTensor* src, int64_t src_row, CacheTensor* dst, int64_t dst_row, int64_t n_rows) {
  const bool is_same_layout = src->state() == CacheTensor::State::kPages && dst->state() == CacheTensor::State::kPages &&
                              src->side() == dst->side() && src->head_dim() == dst->head_dim() &&
                              src->n_values() == dst->n_values() && src->page_stride() == dst->page_stride();
  // Codes mean something only together with their conditioning.
  if (!is_same_layout || (src != dst && (src->conditioner() != nullptr || dst->conditioner() != nullptr))) return false;
  const int64_t src_cell = src_row % src->n_cells(), dst_cell = dst_row % dst->n_cells();
  const bool is_within_streams = src_cell + n_rows <= src->n_cells() && dst_cell + n_rows <= dst->n_cells();
  const bool is_whole_pages =
      src_cell % kPageTokens == 0 && dst_cell % kPageTokens == 0 &&
      (n_rows % kPageTokens == 0 || (src_cell + n_rows == src->n_cells() && dst_cell + n_rows == dst->n_cells()));
  const bool has_exact_rows = src->n_exact() > 0 && (src_cell == 0 || dst_cell == 0);
  const bool is_moved = src_cell != dst_cell && dst->conditioner() != nullptr;  // means belong to their cells
  if (!is_within_streams || !is_whole_pages || is_moved || (has_exact_rows && src_cell != dst_cell)) return false;
  state_settle(src);
  state_settle(dst);
  // In this order, so that dst is written back before the host's side of both is dropped, should they be one tensor.
  const HostSide src_side(src, src_row, n_rows, HostSide::For::kReading);
  const HostSide dst_side(dst, dst_row, n_rows, HostSide::For::kWriting);
  if (dst->conditioner() != nullptr) {
    if (!dst->conditioner()->means().copy(src_row / src->n_cells(), dst_row / dst->n_cells(), src_cell, src_cell + n_rows)) return false;
    dst->conditioner()->freeze();  // rows stored anew later would miss the copy
  }
  if (has_exact_rows) {
    const size_t bytes = std::min(src->exact_stream_stride(), dst->exact_stream_stride());
    std::memcpy(dst->exact_row(dst_row / dst->n_cells(), 0, 0), src->exact_row(src_row / src->n_cells(), 0, 0), bytes);
  }
  if (dst->recent() != nullptr) {
    const auto begin = static_cast<int32_t>(dst_cell), end = static_cast<int32_t>(dst_cell + n_rows);
    const auto dst_stream = static_cast<size_t>(dst_row / dst->n_cells()), src_stream = static_cast<size_t>(src_row / src->n_cells());
    dst->recent()->forget(dst_stream, begin, end);
    if (src_cell == dst_cell) dst->recent()->append_from(*src->recent(), src_stream, dst_stream, begin, end);
  }
  dst->set_written();
  const size_t page_bytes = src->page_stride();
  for (int64_t head = 0; head < src->n_heads(); ++head) {
    const char* from =
        src->head_pages(src_row / src->n_cells(), head) + static_cast<size_t>(src_cell / kPageTokens) * page_bytes;
    char* to = dst->head_pages(dst_row / dst->n_cells(), head) + static_cast<size_t>(dst_cell / kPageTokens) * page_bytes;
    for (int64_t p = 0; p < (n_rows + kPageTokens - 1) / kPageTokens; ++p, from += page_bytes, to += page_bytes) {
      // Comparing first leaves empty pages uncommitted.
      if (from != to && std::memcmp(from, to, page_bytes) != 0) std::memcpy(to, from, page_bytes);
    }
  }
  return true;
}

}  // namespace kvt::plugin
