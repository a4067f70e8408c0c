#include "cuda_calls.h"

#include <cstring>

namespace kvt::plugin {
namespace {

size_t head_bytes(const CacheTensor& cache) { return static_cast<size_t>(cache.head_dim()) * sizeof(ggml_fp16_t); }

uint32_t narrow(int64_t n) { return static_cast<uint32_t>(n); }

// What lies on the host's side of a cache's pages -> on the device.
const char* on_device(const CacheTensor& cache, const void* place) {
  return cache.device()->pages() + (static_cast<const char*>(place) - cache.host_pages());
}

}  // namespace

bool has_exact_rows(const CacheTensor& cache) { return cache.n_exact() > 0 || cache.device()->capacity() > 0; }

kvt_cuda_exact_rows exact_rows_of(const CacheTensor& cache, size_t stream, size_t head, bool with_ring) {
  const DeviceCells& device = *cache.device();
  kvt_cuda_exact_rows rows{};
  rows.struct_size = sizeof(rows);
  rows.n_streams = narrow(cache.n_streams()) - static_cast<uint32_t>(stream);
  rows.n_first = narrow(cache.n_exact());
  const auto place = [&](uint16_t* base, size_t n, size_t* head_stride, size_t* stream_stride) {
    *head_stride = n * head_bytes(cache);
    *stream_stride = *head_stride * static_cast<size_t>(cache.n_heads());
    return base + (stream * *stream_stride + head * *head_stride) / sizeof(uint16_t);
  };
  rows.first = place(device.first_rows(), rows.n_first, &rows.first_head_stride, &rows.first_stream_stride);
  if (!with_ring || device.capacity() == 0) return rows;
  rows.capacity = static_cast<uint32_t>(device.capacity());
  rows.ring = place(device.ring_rows(), rows.capacity, &rows.ring_head_stride, &rows.ring_stream_stride);
  rows.ring_cells = device.ring_cells() + stream * rows.capacity;
  rows.ring_next = device.ring_next() + stream;
  return rows;
}

bool can_encode(const ggml_tensor* set_rows) {
  const ggml_tensor* index = set_rows->src[1];
  return index->nb[0] == (index->type == GGML_TYPE_I64 ? sizeof(int64_t) : sizeof(int32_t));
}

namespace {

// The means of a cache, from these of its codes and units on.
template <typename Args>
void set_means(const CacheTensor& cache, size_t first_code, size_t first_unit, Args* args) {
  const DeviceCells& device = *cache.device();
  const auto n_means = static_cast<size_t>(cache.conditioner()->means().n_means()), n_heads = static_cast<size_t>(cache.n_heads());
  args->key_scale_head_stride = static_cast<size_t>(cache.head_dim()) * sizeof(float);
  args->key_mean = device.key_means() + first_code;
  args->key_mean_head_stride = n_means * static_cast<size_t>(cache.head_dim());
  args->key_mean_stream_stride = args->key_mean_head_stride * n_heads;
  args->key_mean_unit = device.key_mean_units() + first_unit;
  args->key_mean_unit_head_stride = n_means * sizeof(float);
  args->key_mean_unit_stream_stride = args->key_mean_unit_head_stride * n_heads;
  args->mean_cells = KeyMeans::kCells;
}

kvt_cuda_encode_args encode_args_for(const CacheTensor& cache) {
  kvt_cuda_encode_args args{};
  args.struct_size = sizeof(args);
  args.codec = cache.codec_id();
  args.side = cache.side();
  args.head_dim = narrow(cache.head_dim());
  args.n_kv_heads = narrow(cache.n_heads());
  args.pages = cache.device()->pages();
  args.page_stride = cache.page_stride();
  args.head_stride = cache.head_stride();
  args.cells_per_stream = cache.n_cells();
  args.stream_stride = cache.stream_stride();
  args.round_to_half = 1;
  if (cache.conditioner() != nullptr) {
    args.key_inverse_scale = cache.device()->key_inverse_scale();
    set_means(cache, 0, 0, &args);
  }
  return args;
}

}  // namespace

kvt_cuda_encode_args encode_args_of(const CacheTensor& cache, const ggml_tensor* set_rows) {
  const ggml_tensor *rows = set_rows->src[0], *index = set_rows->src[1];
  kvt_cuda_encode_args args = encode_args_for(cache);
  args.n_rows = narrow(rows->ne[1]);
  args.src_type = KVT_CUDA_F32;
  args.src = rows->data;
  args.src_row_stride = rows->nb[1];
  args.src_head_stride = static_cast<size_t>(cache.head_dim()) * sizeof(float);
  args.cells = index->data;
  args.cells_type = index->type == GGML_TYPE_I64 ? KVT_CUDA_I64 : KVT_CUDA_I32;
  args.cell_offset = static_cast<int64_t>(cache.offset_of(set_rows->data) / cache.row_bytes());
  return args;
}

std::vector<int64_t> row_numbers(const char* bytes, kvt_cuda_index_type type, int64_t n_rows) {
  std::vector<int64_t> numbers(static_cast<size_t>(n_rows));
  for (size_t i = 0; i < numbers.size(); ++i) {
    int32_t narrow = 0;
    if (type == KVT_CUDA_I64) {
      std::memcpy(&numbers[i], bytes + i * sizeof(int64_t), sizeof(int64_t));
    } else {
      std::memcpy(&narrow, bytes + i * sizeof(narrow), sizeof(narrow));
      numbers[i] = narrow;
    }
  }
  return numbers;
}

kvt_cuda_encode_args part_of(const kvt_cuda_encode_args& args, int64_t begin, int64_t end) {
  kvt_cuda_encode_args part = args;
  const size_t number_bytes = args.cells_type == KVT_CUDA_I64 ? sizeof(int64_t) : sizeof(int32_t);
  part.n_rows = narrow(end - begin);
  part.src = static_cast<const char*>(args.src) + static_cast<size_t>(begin) * args.src_row_stride;
  part.cells = static_cast<const char*>(args.cells) + static_cast<size_t>(begin) * number_bytes;
  if (args.unchanged != nullptr) part.unchanged = static_cast<const char*>(args.unchanged) + static_cast<size_t>(begin) * args.src_row_stride;
  return part;
}

kvt_cuda_encode_args encode_args_of(const CacheTensor& cache, int64_t first_row, int64_t n_rows, const void* rows, const int32_t* numbers) {
  kvt_cuda_encode_args args = encode_args_for(cache);
  args.n_rows = narrow(n_rows);
  args.src_type = KVT_CUDA_F16;
  args.src = rows;
  args.src_row_stride = cache.row_bytes();
  args.src_head_stride = head_bytes(cache);
  args.cells = numbers;
  args.cells_type = KVT_CUDA_I32;
  args.cell_offset = first_row;
  return args;
}

kvt_cuda_decode_args decode_args_of(const CacheTensor& cache, int64_t stream, int64_t n_streams, int64_t first_cell, int64_t n_cells,
                                    void* dst) {
  kvt_cuda_decode_args args{};
  args.struct_size = sizeof(args);
  args.codec = cache.codec_id();
  args.side = cache.side();
  args.head_dim = narrow(cache.head_dim());
  args.n_streams = narrow(n_streams);
  args.n_kv_heads = narrow(cache.n_heads());
  args.first_cell = narrow(first_cell);
  args.n_cells = narrow(n_cells);
  args.pages = cache.device()->pages() + static_cast<size_t>(stream) * cache.stream_stride();
  args.page_stride = cache.page_stride();
  args.head_stride = cache.head_stride();
  args.stream_stride = cache.stream_stride();
  args.dst_type = KVT_CUDA_F16;
  args.dst = dst;
  args.dst_row_stride = cache.row_bytes();
  args.dst_head_stride = head_bytes(cache);
  args.dst_stream_stride = cache.row_bytes() * static_cast<size_t>(cache.n_cells());
  if (cache.conditioner() != nullptr) {
    args.key_scale = cache.device()->key_scale();
    const size_t unit = static_cast<size_t>(stream * cache.n_heads() * cache.conditioner()->means().n_means());
    set_means(cache, unit * args.head_dim, unit, &args);
  }
  args.recent_window = cache.recent() != nullptr ? static_cast<uint32_t>(cache.recent()->window()) : 0;
  return args;
}

kvt_cuda_attention attention_args_of(const AttendTask& task) {
  const kvt_attention& shape = task.shape;
  const ggml_tensor* node = task.node;
  const CacheTensor &keys = *task.keys.cache, &values = *task.values.cache;
  kvt_cuda_attention a{};
  a.struct_size = sizeof(a);
  a.codec = keys.codec_id();
  a.head_dim_k = narrow(keys.head_dim());
  a.head_dim_v = narrow(values.head_dim());
  a.n_streams = shape.n_streams;
  a.n_kv_heads = shape.n_kv_heads;
  a.n_group = shape.n_group;
  a.n_queries = shape.n_queries;
  a.max_cells = shape.n_cells;
  a.k_pages = on_device(keys, shape.k_pages);
  a.k_page_stride = shape.k_page_stride;
  a.k_head_stride = shape.k_head_stride;
  a.k_stream_stride = shape.k_stream_stride;
  a.v_pages = on_device(values, shape.v_pages);
  a.v_page_stride = shape.v_page_stride;
  a.v_head_stride = shape.v_head_stride;
  a.v_stream_stride = shape.v_stream_stride;
  a.q_type = KVT_CUDA_F32;
  a.q = node->src[0]->data;
  a.q_query_stride = shape.q_query_stride;
  a.q_head_stride = shape.q_head_stride;
  a.q_stream_stride = shape.q_stream_stride;
  if (node->src[3] != nullptr) {
    a.mask = static_cast<const uint16_t*>(node->src[3]->data);
    a.mask_query_stride = shape.mask_query_stride;
    a.mask_head_stride = shape.mask_head_stride;
    a.mask_stream_stride = shape.mask_stream_stride;
  }
  if (node->src[4] != nullptr) a.sinks = static_cast<const float*>(node->src[4]->data);
  a.scale = shape.scale;
  a.logit_softcap = shape.logit_softcap;
  a.out_type = KVT_CUDA_F32;
  a.out = node->data;
  a.out_query_stride = shape.out_query_stride;
  a.out_head_stride = shape.out_head_stride;
  a.out_stream_stride = shape.out_stream_stride;
  if (keys.conditioner() != nullptr) {
    const KeyMeans& means = keys.conditioner()->means();
    a.key_scale = keys.device()->key_scale() + task.keys.head * a.head_dim_k;
    set_means(keys, static_cast<size_t>(shape.key_mean - means.all_codes()), static_cast<size_t>(shape.key_mean_unit - means.all_units()), &a);
  }
  return a;
}

}  // namespace kvt::plugin
