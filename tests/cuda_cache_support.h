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
  uint32_t mean_cells = 128;

  std::string name() const {
    return std::string(kvt_codec_name(codec)) + (side == KVT_KEY ? " keys" : " values") + " d " + std::to_string(d) + " streams " +
           std::to_string(n_streams) + " first " + std::to_string(n_first) + " ring " + std::to_string(capacity) +
           (conditioned ? " conditioned" : "");
  }
  uint32_t n_means() const { return static_cast<uint32_t>((n_cells + mean_cells - 1) / mean_cells); }
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
        means(make_means(shape)),
        units(make_units(shape)),
        d_means(means),
        d_units(units),
        d_scale(size_t{shape.n_heads} * shape.d),
        d_inverse(size_t{shape.n_heads} * shape.d) {
    pages.fill_bytes(0);
    first.fill_bytes(0);
    ring.fill_bytes(0);
    ring_cells.fill_bytes(0xff);
    ring_next.fill_bytes(0);
    for (size_t i = 0; i < size_t{shape.n_heads} * shape.d; ++i) {
      scale.push_back(0.5f + static_cast<float>(splitmix64(52, i) % 100) / 80.0f);
      inverse.push_back(1.0f / scale.back());
    }
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
      a.key_inverse_scale = d_inverse.get();
      set_means(&a);
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
      a.key_scale = d_scale.get();
      set_means(&a);
    }
    if (shape.n_first > 0 || shape.capacity > 0) {
      a.exact = &exact;
      a.recent_window = window;
    }
    return a;
  }

  // Of any arguments that have them.
  template <class Args>
  void set_means(Args* a) const {
    a->key_scale_head_stride = shape.d * sizeof(float);
    a->key_mean = d_means.get();
    a->key_mean_head_stride = size_t{shape.n_means()} * shape.d;
    a->key_mean_stream_stride = shape.n_heads * a->key_mean_head_stride;
    a->key_mean_unit = d_units.get();
    a->key_mean_unit_head_stride = shape.n_means() * sizeof(float);
    a->key_mean_unit_stream_stride = shape.n_heads * a->key_mean_unit_head_stride;
    a->mean_cells = shape.mean_cells;
  }
  // Element i of the mean of a cell, with its unit and without.
  size_t run_of(size_t stream, size_t head, int64_t cell) const {
    return (stream * shape.n_heads + head) * shape.n_means() + static_cast<size_t>(cell) / shape.mean_cells;
  }
  float mean_unit(size_t stream, size_t head, int64_t cell) const { return std::max(units[run_of(stream, head, cell)], 0.0f); }
  float mean_code(size_t stream, size_t head, int64_t cell, size_t i) const {
    return static_cast<float>(means[run_of(stream, head, cell) * shape.d + i]);
  }

  const TensorShape shape;
  DeviceArray<uint8_t> pages;
  DeviceArray<uint16_t> first, ring;
  DeviceArray<int32_t> ring_cells;
  DeviceArray<uint32_t> ring_next;
  std::vector<int8_t> means;  // [n_streams, n_heads, n_means, d]
  std::vector<float> units;   // [n_streams, n_heads, n_means]
  DeviceArray<int8_t> d_means;
  DeviceArray<float> d_units;
  std::vector<float> scale, inverse;  // [n_heads, d]
  DeviceArray<float> d_scale, d_inverse;
  kvt_cuda_exact_rows exact{};

 private:
  // Values up to 1.3, which differ from run to run; every 11th run has no mean.
  static std::vector<float> make_units(const TensorShape& s) {
    std::vector<float> units(size_t{s.n_streams} * s.n_heads * s.n_means());
    for (size_t i = 0; i < units.size(); ++i) units[i] = i % 11 == 5 ? -1.0f : 0.004f + static_cast<float>(splitmix64(53, i) % 64) / 10000.0f;
    return units;
  }
  static std::vector<int8_t> make_means(const TensorShape& s) {
    std::vector<int8_t> means(size_t{s.n_streams} * s.n_heads * s.n_means() * s.d);
    for (size_t i = 0; i < means.size(); ++i) means[i] = i / s.d % 11 == 5 ? int8_t{0} : static_cast<int8_t>(splitmix64(51, i) % 255 - 127);
    return means;
  }
};

// A batch of rows for cells that differ; of an engine: mostly the next cells of each stream, now and then old ones again.
struct Batch {
  std::vector<float> rows;     // [n, n_heads, d]
  std::vector<int64_t> cells;  // over all streams; negative: skipped
};

}  // namespace kvt_test
