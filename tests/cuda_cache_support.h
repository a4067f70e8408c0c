// One cache tensor (keys or values of a layer) in device memory, as an engine keeps it: pages [stream][head][page], first rows and
// ring, conditioning; and the calls that fill it.
#pragma once

#include <algorithm>
#include <memory>

#include "cuda_support.h"

namespace kvt_test {

struct TensorShape {
  kvt_codec_id codec = KVT_CODEC_SCALAR43;
  kvt_side side = KVT_KEY;
  uint32_t d = 128, n_streams = 1, n_heads = 2;
  int64_t n_cells = 300;  // of a stream
  uint32_t n_first = 0, capacity = 0;
  bool conditioned = false;

  std::string name() const {
    return std::string(kvt_codec_name(codec)) + (side == KVT_KEY ? " keys" : " values") + " d " + std::to_string(d) + " streams " +
           std::to_string(n_streams) + " first " + std::to_string(n_first) + " ring " + std::to_string(capacity) +
           (conditioned ? " conditioned" : "");
  }
  size_t page_bytes() const { return kvt_page_bytes_for(codec, side, d); }
  size_t head_stride() const { return pages_for(static_cast<size_t>(n_cells)) * page_bytes() + 16; }
  size_t stream_stride() const { return n_heads * head_stride() + 32; }
};

class CacheTensor {
 public:
  explicit CacheTensor(const TensorShape& of)
      : shape(of),
        pages(shape.n_streams * shape.stream_stride()),
        first(size_t{shape.n_streams} * shape.n_heads * shape.n_first * shape.d),
        ring(size_t{shape.n_streams} * shape.n_heads * shape.capacity * shape.d),
        ring_cells(size_t{shape.n_streams} * shape.capacity),
        ring_next(shape.n_streams),
        d_mean(size_t{shape.n_heads} * shape.d),
        d_scale(size_t{shape.n_heads} * shape.d),
        d_inverse(size_t{shape.n_heads} * shape.d) {
    pages.fill_bytes(0);
    first.fill_bytes(0);
    ring.fill_bytes(0);
    ring_cells.fill_bytes(0xff);
    ring_next.fill_bytes(0);
    for (size_t i = 0; i < size_t{shape.n_heads} * shape.d; ++i) {
      mean.push_back(static_cast<float>(splitmix64(51, i) % 64) / 32.0f - 1.0f);
      scale.push_back(0.5f + static_cast<float>(splitmix64(52, i) % 100) / 80.0f);
      inverse.push_back(1.0f / scale.back());
    }
    d_mean.set(mean);
    d_scale.set(scale);
    d_inverse.set(inverse);
    exact.struct_size = sizeof exact;
    exact.n_streams = shape.n_streams;
    exact.n_first = shape.n_first;
    exact.capacity = shape.capacity;
    exact.first = first.get();
    exact.first_head_stride = size_t{shape.n_first} * shape.d * 2;
    exact.first_stream_stride = shape.n_heads * exact.first_head_stride;
    exact.ring = ring.get();
    exact.ring_head_stride = size_t{shape.capacity} * shape.d * 2;
    exact.ring_stream_stride = shape.n_heads * exact.ring_head_stride;
    exact.ring_cells = ring_cells.get();
    exact.ring_next = ring_next.get();
  }

  // src: [n_rows, n_heads, d] of the type; cells: over all streams.
  kvt_cuda_encode_args encode_args(const void* src, kvt_cuda_type type, const void* cells, uint32_t n_rows) const {
    kvt_cuda_encode_args a{};
    a.struct_size = sizeof a;
    a.codec = shape.codec;
    a.side = shape.side;
    a.head_dim = shape.d;
    a.n_rows = n_rows;
    a.n_kv_heads = shape.n_heads;
    a.src_type = type;
    a.src = src;
    a.src_head_stride = shape.d * (type == KVT_CUDA_F32 ? 4 : 2);
    a.src_row_stride = shape.n_heads * a.src_head_stride;
    a.cells = cells;
    a.pages = pages.get();
    a.page_stride = shape.page_bytes();
    a.head_stride = shape.head_stride();
    a.stream_stride = shape.stream_stride();
    a.cells_per_stream = shape.n_cells;
    a.round_to_half = 1;
    if (shape.conditioned) {
      a.key_mean = d_mean.get();
      a.key_inverse_scale = d_inverse.get();
      a.key_conditioning_head_stride = shape.d * sizeof(float);
    }
    if (shape.n_first > 0 || shape.capacity > 0) a.exact = &exact;
    return a;
  }

  kvt_cuda_decode_args decode_args(void* dst, kvt_cuda_type type, uint32_t first_cell, uint32_t n_cells, uint32_t window) const {
    kvt_cuda_decode_args a{};
    a.struct_size = sizeof a;
    a.codec = shape.codec;
    a.side = shape.side;
    a.head_dim = shape.d;
    a.n_streams = shape.n_streams;
    a.n_kv_heads = shape.n_heads;
    a.first_cell = first_cell;
    a.n_cells = n_cells;
    a.pages = pages.get();
    a.page_stride = shape.page_bytes();
    a.head_stride = shape.head_stride();
    a.stream_stride = shape.stream_stride();
    a.dst_type = type;
    a.dst = dst;
    a.dst_head_stride = shape.d * (type == KVT_CUDA_F32 ? 4 : 2);
    a.dst_row_stride = shape.n_heads * a.dst_head_stride;
    a.dst_stream_stride = n_cells * a.dst_row_stride;
    if (shape.conditioned) {
      a.key_mean = d_mean.get();
      a.key_scale = d_scale.get();
      a.key_conditioning_head_stride = shape.d * sizeof(float);
    }
    if (shape.n_first > 0 || shape.capacity > 0) {
      a.exact = &exact;
      a.recent_window = window;
    }
    return a;
  }

  const TensorShape shape;
  DeviceArray<uint8_t> pages;
  DeviceArray<uint16_t> first, ring;
  DeviceArray<int32_t> ring_cells;
  DeviceArray<uint32_t> ring_next;
  std::vector<float> mean, scale, inverse;  // [n_heads, d]
  DeviceArray<float> d_mean, d_scale, d_inverse;
  kvt_cuda_exact_rows exact{};
};

// A batch of rows for cells that differ; of an engine: mostly the next cells of each stream, now and then old ones again.
struct Batch {
  std::vector<float> rows;     // [n, n_heads, d]
  std::vector<int64_t> cells;  // over all streams; negative: skipped
};

}  // namespace kvt_test
