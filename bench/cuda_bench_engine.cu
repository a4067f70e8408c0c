// What an engine asks of a layer in one step: new rows with their exact copies, the step's preparation, attention by it; and
// rows decoded for prefill. Each is repeated in one CUDA graph, on a cache that stays where it is: launch costs and latencies, not
// bandwidth.
#include "cuda_bench_engine.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda_bench_pool.h"

namespace {

constexpr uint32_t kHeads = 8, kGroup = 4, kDim = 128, kFirst = 4, kWindow = 48, kRing = 56, kMeanCells = 512;

void check(kvt_status status, const char* what) {
  if (status == KVT_OK) return;
  std::fprintf(stderr, "kvturbo_cuda_bench: %s: %s (%s)\n", what, kvt_status_string(status), cudaGetErrorString(cudaGetLastError()));
  std::exit(1);
}

template <class T>
T* allocate(size_t n, int fill) {
  void* p = nullptr;
  KVT_BENCH_CHECK(cudaMalloc(&p, n * sizeof(T)));
  KVT_BENCH_CHECK(cudaMemset(p, fill, n * sizeof(T)));
  return static_cast<T*>(p);
}

// us of one call: median of 5 launches of a graph of 50.
template <class Call>
double time_us(cudaStream_t stream, const Call& call) {
  constexpr int kCalls = 50;
  call();
  KVT_BENCH_CHECK(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  KVT_BENCH_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kCalls; ++i) call();
  KVT_BENCH_CHECK(cudaStreamEndCapture(stream, &graph));
  KVT_BENCH_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin, end;
  KVT_BENCH_CHECK(cudaEventCreate(&begin));
  KVT_BENCH_CHECK(cudaEventCreate(&end));
  std::vector<double> times;
  for (int i = 0; i < 6; ++i) {
    KVT_BENCH_CHECK(cudaEventRecord(begin, stream));
    KVT_BENCH_CHECK(cudaGraphLaunch(executable, stream));
    KVT_BENCH_CHECK(cudaEventRecord(end, stream));
    KVT_BENCH_CHECK(cudaStreamSynchronize(stream));
    float ms = 0;
    KVT_BENCH_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i > 0) times.push_back(static_cast<double>(ms) * 1000 / kCalls);
  }
  std::sort(times.begin(), times.end());
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  return times[times.size() / 2];
}

struct Tensor {
  kvt_codec_id codec;
  kvt_side side;
  uint32_t n_streams, n_cells;
  size_t page_bytes;
  char* pages;
  kvt_cuda_exact_rows exact{};
  // Conditioning, of keys.
  float *scale, *units;
  int8_t* means;

  Tensor(kvt_codec_id codec, kvt_side side, uint32_t n_streams, uint32_t n_cells)
      : codec(codec), side(side), n_streams(n_streams), n_cells(n_cells), page_bytes(kvt_page_bytes_for(codec, side, kDim)) {
    pages = allocate<char>(n_streams * stream_stride(), 0);
    fill_pages(codec, side, kDim, pages, size_t{n_streams} * kHeads * n_cells / KVT_PAGE_TOKENS, 1 + side);
    scale = allocate<float>(kHeads * kDim, 0x3f);  // 0.75
    units = allocate<float>(n_means() * kHeads * n_streams, 0x3c);
    means = allocate<int8_t>(n_means() * kHeads * n_streams * kDim, 1);
    exact.struct_size = sizeof exact;
    exact.n_streams = n_streams;
    exact.n_first = kFirst;
    exact.capacity = kRing;
    exact.first_head_stride = kFirst * kDim * 2;
    exact.first_stream_stride = kHeads * exact.first_head_stride;
    exact.ring_head_stride = kRing * kDim * 2;
    exact.ring_stream_stride = kHeads * exact.ring_head_stride;
    exact.first = allocate<uint16_t>(n_streams * exact.first_stream_stride / 2, 0);
    exact.ring = allocate<uint16_t>(n_streams * exact.ring_stream_stride / 2, 0);
    exact.ring_cells = allocate<int32_t>(size_t{n_streams} * kRing, 0xff);
    exact.ring_next = allocate<uint32_t>(n_streams, 0);
    std::vector<int32_t> cells(size_t{n_streams} * kRing);
    for (size_t i = 0; i < cells.size(); ++i) cells[i] = static_cast<int32_t>(n_cells - kRing + i % kRing);
    KVT_BENCH_CHECK(cudaMemcpy(exact.ring_cells, cells.data(), cells.size() * 4, cudaMemcpyHostToDevice));
  }
  ~Tensor() {
    for (void* p : {static_cast<void*>(pages), static_cast<void*>(exact.first), static_cast<void*>(exact.ring),
                    static_cast<void*>(exact.ring_cells), static_cast<void*>(exact.ring_next), static_cast<void*>(scale),
                    static_cast<void*>(units), static_cast<void*>(means)}) {
      cudaFree(p);
    }
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  size_t head_stride() const { return page_bytes * n_cells / KVT_PAGE_TOKENS; }
  size_t stream_stride() const { return head_stride() * kHeads; }
  size_t n_means() const { return (n_cells + kMeanCells - 1) / kMeanCells; }

  template <class Args>
  void set_means(Args* a) const {
    a->key_scale_head_stride = kDim * sizeof(float);
    a->key_mean = means;
    a->key_mean_head_stride = n_means() * kDim;
    a->key_mean_stream_stride = kHeads * a->key_mean_head_stride;
    a->key_mean_unit = units;
    a->key_mean_unit_head_stride = n_means() * sizeof(float);
    a->key_mean_unit_stream_stride = kHeads * a->key_mean_unit_head_stride;
    a->mean_cells = kMeanCells;
  }

  kvt_cuda_encode_args encode_args(const void* src, const int64_t* cells, uint32_t n_rows) const {
    kvt_cuda_encode_args a{};
    a.struct_size = sizeof a;
    a.codec = codec;
    a.side = side;
    a.head_dim = kDim;
    a.n_rows = n_rows;
    a.n_kv_heads = kHeads;
    a.src_type = KVT_CUDA_F32;
    a.src = src;
    a.src_head_stride = kDim * 4;
    a.src_row_stride = kHeads * a.src_head_stride;
    a.cells = cells;
    a.pages = pages;
    a.page_stride = page_bytes;
    a.head_stride = head_stride();
    a.stream_stride = stream_stride();
    a.cells_per_stream = n_cells;
    a.round_to_half = 1;
    a.exact = &exact;
    if (side == KVT_KEY) {
      a.key_inverse_scale = scale;
      set_means(&a);
    }
    return a;
  }
};

void bench_shape(kvt_codec_id codec, uint32_t n_streams, uint32_t n_cells) {
  cudaStream_t stream;
  KVT_BENCH_CHECK(cudaStreamCreate(&stream));
  const Tensor k(codec, KVT_KEY, n_streams, n_cells), v(codec, KVT_VALUE, n_streams, n_cells);
  auto* rows = allocate<float>(size_t{n_streams} * kHeads * kDim, 0x3c);
  std::vector<int64_t> host_cells(n_streams);
  for (uint32_t s = 0; s < n_streams; ++s) host_cells[s] = int64_t{s + 1} * n_cells - 1;
  auto* cells = allocate<int64_t>(n_streams, 0);
  KVT_BENCH_CHECK(cudaMemcpy(cells, host_cells.data(), n_streams * sizeof(int64_t), cudaMemcpyHostToDevice));
  const kvt_cuda_encode_args encode[2] = {k.encode_args(rows, cells, n_streams), v.encode_args(rows, cells, n_streams)};
  const double append_us = time_us(stream, [&] { check(kvt_cuda_append(&encode[0], &encode[1], stream), "kvt_cuda_append"); });
  const double begin_us = time_us(stream, [&] { check(kvt_cuda_begin_means(&encode[0], k.scale, stream), "kvt_cuda_begin_means"); });
  // No run has a mean: the last one of each stream is begun.
  const double begin_all_us = time_us(stream, [&] {
    KVT_BENCH_CHECK(cudaMemsetAsync(k.units, 0xbf, k.n_means() * kHeads * n_streams * sizeof(float), stream));  // -1.5
    check(kvt_cuda_begin_means(&encode[0], k.scale, stream), "kvt_cuda_begin_means");
  });
  KVT_BENCH_CHECK(cudaMemset(k.units, 0x3c, k.n_means() * kHeads * n_streams * sizeof(float)));
  kvt_cuda_encode_args codes_only[2] = {encode[0], encode[1]};
  for (kvt_cuda_encode_args& a : codes_only) a.exact = nullptr;
  const double codes_us = time_us(stream, [&] { check(kvt_cuda_append(&codes_only[0], &codes_only[1], stream), "kvt_cuda_append"); });
  const double encode_us = time_us(stream, [&] {
    for (const kvt_cuda_encode_args& a : encode) check(kvt_cuda_encode(&a, stream), "kvt_cuda_encode");
  });

  auto* mask = allocate<uint16_t>(size_t{n_streams} * n_cells, 0);
  kvt_cuda_step_args step{};
  step.struct_size = sizeof step;
  step.n_streams = n_streams;
  step.n_queries = 1;
  step.n_cells = n_cells;
  step.mask = mask;
  step.mask_query_stride = step.mask_stream_stride = n_cells * 2;
  step.n_first = kFirst;
  step.window = kWindow;
  step.capacity = kRing;
  step.ring_cells = k.exact.ring_cells;
  step.ring_next = k.exact.ring_next;
  const size_t step_bytes = kvt_cuda_step_bytes(&step);
  auto* prepared = allocate<char>(step_bytes, 0);
  const double prepare_us =
      time_us(stream, [&] { check(kvt_cuda_prepare_step(&step, prepared, step_bytes, stream), "kvt_cuda_prepare_step"); });

  const size_t n_values = size_t{n_streams} * kHeads * kGroup * kDim;
  auto *q = allocate<float>(n_values, 0x3c), *out = allocate<float>(n_values, 0);
  kvt_cuda_attention a{};
  a.struct_size = sizeof a;
  a.codec = codec;
  a.head_dim_k = a.head_dim_v = kDim;
  a.n_streams = n_streams;
  a.n_kv_heads = kHeads;
  a.n_group = kGroup;
  a.n_queries = 1;
  a.max_cells = n_cells;
  a.k_pages = k.pages;
  a.k_page_stride = k.page_bytes;
  a.k_head_stride = k.head_stride();
  a.k_stream_stride = k.stream_stride();
  a.v_pages = v.pages;
  a.v_page_stride = v.page_bytes;
  a.v_head_stride = v.head_stride();
  a.v_stream_stride = v.stream_stride();
  a.q = q;
  a.q_head_stride = a.out_head_stride = kDim * 4;
  a.q_query_stride = a.out_query_stride = a.q_stream_stride = a.out_stream_stride = kHeads * kGroup * kDim * 4;
  a.scale = 1.0f / std::sqrt(static_cast<float>(kDim));
  a.out = out;
  const size_t workspace_bytes = kvt_cuda_attend_workspace_bytes(&a);
  auto* workspace = allocate<char>(workspace_bytes, 0);
  const auto attend = [&] { check(kvt_cuda_attend(&a, workspace, workspace_bytes, stream), "kvt_cuda_attend"); };
  const double plain_us = time_us(stream, attend);
  a.key_scale = k.scale;
  k.set_means(&a);
  const double means_us = time_us(stream, attend);
  a.exact_k = &k.exact;
  a.exact_v = &v.exact;
  a.step = prepared;
  a.recent_window = kWindow;
  const double attend_us = time_us(stream, attend);

  auto* decoded = allocate<uint16_t>(size_t{n_streams} * n_cells * kHeads * kDim, 0);
  double decode_us[2];
  for (const Tensor* t : {&k, &v}) {
    kvt_cuda_decode_args d{};
    d.struct_size = sizeof d;
    d.codec = codec;
    d.side = t->side;
    d.head_dim = kDim;
    d.n_streams = n_streams;
    d.n_kv_heads = kHeads;
    d.n_cells = n_cells;
    d.pages = t->pages;
    d.page_stride = t->page_bytes;
    d.head_stride = t->head_stride();
    d.stream_stride = t->stream_stride();
    d.dst_type = KVT_CUDA_F16;
    d.dst = decoded;
    d.dst_head_stride = kDim * 2;
    d.dst_row_stride = kHeads * kDim * 2;
    d.dst_stream_stride = n_cells * d.dst_row_stride;
    d.exact = &t->exact;
    d.recent_window = kWindow;
    decode_us[t->side] = time_us(stream, [&] { check(kvt_cuda_decode(&d, stream), "kvt_cuda_decode"); });
  }
  const double n_decoded = static_cast<double>(n_streams) * n_cells * kHeads;
  std::printf("| B%u %uK | %s | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f | %.2f | %.2f |\n", n_streams, n_cells / 1024, kvt_codec_name(codec),
              append_us, codes_us, encode_us, begin_us, begin_all_us, prepare_us, attend_us, means_us, plain_us, n_decoded / decode_us[0] / 1e3, n_decoded / decode_us[1] / 1e3);
  std::fflush(stdout);
  for (void* p : {static_cast<void*>(rows), static_cast<void*>(cells), static_cast<void*>(mask), static_cast<void*>(prepared),
                  static_cast<void*>(q), static_cast<void*>(out), static_cast<void*>(workspace), static_cast<void*>(decoded)}) {
    cudaFree(p);
  }
  cudaStreamDestroy(stream);
}

}  // namespace

void bench_engine(const std::vector<kvt_codec_id>& codecs) {
  std::printf("\nAn engine's step, one layer of %u kv heads, group %u, head dim %u, one token a stream, %u first and %u newest rows exact; us\n\n",
              kHeads, kGroup, kDim, kFirst, kWindow);
  std::printf("| shape | codec | append K and V | codes alone | in two calls | begin means: none | one a stream | prepare | attend by the step | attend by codes with means | without | decode keys, G rows/s | values |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  for (const kvt_codec_id codec : codecs) {
    for (const auto& [n_streams, n_cells] : {std::pair{1u, 4096u}, {1u, 32768u}, {1u, 131072u}, {8u, 32768u}})
      bench_shape(codec, n_streams, n_cells);
  }
}
