// kvturbo_cuda_bench: decode attention and encoding on the GPU at hand, as markdown tables.
//
// Every step of a table row reads other pages than the step before (random page tables over a pool of gigabytes), so no cache
// holds what it reads. Steps are launched as one CUDA graph; a figure is the median over graph launches. Baseline: our fp16
// kernel, same pages, tables and split.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cuda_bench_engine.h"
#include "cuda_bench_pool.h"

namespace {

constexpr uint32_t kHeads = 8, kDim = 128;
constexpr int32_t kMissingCells = 17;  // of the last page of each sequence: it is seldom full

struct Shape {
  uint32_t n_streams, n_cells, n_group, n_queries;
};

struct Options {
  bool decode = true, encode = true, engine = true, sustained = false, quick = false;
  std::string codec;          // only this one beside f16; "all"
  std::vector<Shape> shapes;  // instead of the table's
};

struct Timing {
  double us = 0, mhz = 0;
};

void* allocate(size_t bytes) {
  void* p = nullptr;
  KVT_BENCH_CHECK(cudaMalloc(&p, bytes));
  return p;
}

class DecodeBench {
 public:
  DecodeBench(kvt_codec_id codec, size_t pool_bytes) : codec_(codec) {
    k_bytes_ = kvt_page_bytes_for(codec, KVT_KEY, kDim);
    v_bytes_ = kvt_page_bytes_for(codec, KVT_VALUE, kDim);
    n_pool_ = pool_bytes / ((k_bytes_ + v_bytes_) * kHeads);
    k_pages_ = allocate(n_pool_ * kHeads * k_bytes_);
    v_pages_ = allocate(n_pool_ * kHeads * v_bytes_);
    fill_pages(codec, KVT_KEY, kDim, k_pages_, n_pool_ * kHeads, 1);
    fill_pages(codec, KVT_VALUE, kDim, v_pages_, n_pool_ * kHeads, 2);
    KVT_BENCH_CHECK(cudaStreamCreate(&stream_));
  }
  ~DecodeBench() {
    cudaFree(k_pages_);
    cudaFree(v_pages_);
    cudaStreamDestroy(stream_);
  }
  DecodeBench(const DecodeBench&) = delete;
  DecodeBench& operator=(const DecodeBench&) = delete;

  double bytes(const Shape& s) const {
    return static_cast<double>(k_bytes_ + v_bytes_) * kHeads * s.n_streams * (s.n_cells / KVT_PAGE_TOKENS);
  }

  // launches: of the graph. sustained: the second half of them counts, and there is no pause to cool down.
  Timing time(const Shape& s, int launches, bool sustained) {
    const size_t per_step = size_t{s.n_streams} * (s.n_cells / KVT_PAGE_TOKENS);
    const size_t wanted = static_cast<size_t>(1e9 / bytes(s)) + 1;
    const size_t n_sets = std::min(wanted, n_pool_ / per_step);
    if (n_sets == 0) return {};
    std::vector<int32_t> table(n_pool_);
    for (size_t i = 0; i < n_pool_; ++i) table[i] = static_cast<int32_t>(i);
    std::mt19937 random(7);
    std::shuffle(table.begin(), table.end(), random);
    table.resize(n_sets * per_step);
    auto* d_table = static_cast<int32_t*>(allocate(table.size() * sizeof(int32_t)));
    KVT_BENCH_CHECK(cudaMemcpy(d_table, table.data(), table.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
    const std::vector<int32_t> lengths(s.n_streams, static_cast<int32_t>(s.n_cells) - kMissingCells);
    auto* d_lengths = static_cast<int32_t*>(allocate(lengths.size() * sizeof(int32_t)));
    KVT_BENCH_CHECK(cudaMemcpy(d_lengths, lengths.data(), lengths.size() * sizeof(int32_t), cudaMemcpyHostToDevice));

    const uint32_t n_heads = kHeads * s.n_group;
    const size_t row_bytes = size_t{kDim} * 2, n_rows = size_t{s.n_streams} * s.n_queries * n_heads;
    void* q = allocate(n_rows * row_bytes);
    void* out = allocate(n_rows * row_bytes);
    fill_halves(q, n_rows * kDim, 3, 1.0f);
    kvt_cuda_attention a{};
    a.struct_size = sizeof a;
    a.codec = codec_;
    a.head_dim_k = a.head_dim_v = kDim;
    a.n_streams = s.n_streams;
    a.n_kv_heads = kHeads;
    a.n_group = s.n_group;
    a.n_queries = s.n_queries;
    a.max_cells = s.n_cells;
    a.lengths = d_lengths;
    a.causal = s.n_queries > 1;
    a.page_table_stride = s.n_cells / KVT_PAGE_TOKENS;
    a.k_pages = k_pages_;
    a.k_head_stride = k_bytes_;
    a.k_page_stride = k_bytes_ * kHeads;
    a.v_pages = v_pages_;
    a.v_head_stride = v_bytes_;
    a.v_page_stride = v_bytes_ * kHeads;
    a.q_type = a.out_type = KVT_CUDA_F16;
    a.q = q;
    a.out = out;
    a.q_head_stride = a.out_head_stride = row_bytes;
    a.q_query_stride = a.out_query_stride = row_bytes * n_heads;
    a.q_stream_stride = a.out_stream_stride = row_bytes * n_heads * s.n_queries;
    a.scale = 1.0f / std::sqrt(static_cast<float>(kDim));
    const size_t workspace_bytes = kvt_cuda_attend_workspace_bytes(&a);
    void* workspace = allocate(workspace_bytes);
    auto step = [&](size_t i) {
      a.page_table = d_table + i % n_sets * per_step;
      const kvt_status status = kvt_cuda_attend(&a, workspace, workspace_bytes, stream_);
      if (status != KVT_OK) {
        std::fprintf(stderr, "kvturbo_cuda_bench: kvt_cuda_attend: %s (%s)\n", kvt_status_string(status),
                     cudaGetErrorString(cudaGetLastError()));
        std::exit(1);
      }
    };
    step(0);  // loads the kernels
    KVT_BENCH_CHECK(cudaStreamSynchronize(stream_));

    const double estimate = bytes(s) / 3e12 + 8e-6;
    size_t n_steps = std::max<size_t>(n_sets, std::min<size_t>(64, static_cast<size_t>(10e-3 / estimate) + 1));
    n_steps = (n_steps + n_sets - 1) / n_sets * n_sets;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    KVT_BENCH_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (size_t i = 0; i < n_steps; ++i) step(i);
    KVT_BENCH_CHECK(cudaStreamEndCapture(stream_, &graph));
    KVT_BENCH_CHECK(cudaGraphInstantiate(&executable, graph, 0));
    cudaEvent_t begin, end;
    KVT_BENCH_CHECK(cudaEventCreate(&begin));
    KVT_BENCH_CHECK(cudaEventCreate(&end));
    KVT_BENCH_CHECK(cudaGraphLaunch(executable, stream_));
    KVT_BENCH_CHECK(cudaStreamSynchronize(stream_));
    if (!sustained) std::this_thread::sleep_for(std::chrono::milliseconds(150));  // back to boost clock
    std::vector<double> times, clocks;
    for (int i = 0; i < launches; ++i) {
      KVT_BENCH_CHECK(cudaEventRecord(begin, stream_));
      KVT_BENCH_CHECK(cudaGraphLaunch(executable, stream_));
      KVT_BENCH_CHECK(cudaEventRecord(end, stream_));
      enqueue_clock(stream_);
      KVT_BENCH_CHECK(cudaStreamSynchronize(stream_));
      float ms = 0;
      KVT_BENCH_CHECK(cudaEventElapsedTime(&ms, begin, end));
      if (sustained && i < launches / 2) continue;
      times.push_back(static_cast<double>(ms) * 1000 / static_cast<double>(n_steps));
      clocks.push_back(read_clock());
    }
    std::sort(times.begin(), times.end());
    std::sort(clocks.begin(), clocks.end());
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    for (void* p : {static_cast<void*>(d_table), static_cast<void*>(d_lengths), q, out, workspace}) cudaFree(p);
    return {times[times.size() / 2], clocks[clocks.size() / 2]};
  }

 private:
  kvt_codec_id codec_;
  size_t k_bytes_, v_bytes_, n_pool_;
  void *k_pages_, *v_pages_;
  cudaStream_t stream_;
};

std::string shape_name(const Shape& s) {
  return "B" + std::to_string(s.n_streams) + " " + std::to_string(s.n_cells / 1024) + "K";
}

std::vector<kvt_codec_id> chosen_codecs(const Options& options) {
  std::vector<kvt_codec_id> codecs;
  for (const kvt_codec_id id : {KVT_CODEC_HYBRID, KVT_CODEC_SCALAR43, KVT_CODEC_K4V3, KVT_CODEC_K3V3, KVT_CODEC_K3V2, KVT_CODEC_K2V2,
                                KVT_CODEC_K8V4, KVT_CODEC_K8V3}) {
    if (options.codec.empty() ? id <= KVT_CODEC_K4V3 : options.codec == "all" || options.codec == kvt_codec_name(id)) codecs.push_back(id);
  }
  return codecs;
}

void bench_decode(const Options& options, bool sustained) {
  std::vector<Shape> shapes;
  std::vector<std::pair<uint32_t, uint32_t>> sizes = {{1, 4096}, {1, 32768}, {1, 131072}, {8, 32768}, {8, 131072}, {32, 32768}};
  if (sustained) sizes = {{32, 32768}};
  if (options.quick) sizes = {{1, 32768}, {1, 131072}, {8, 32768}, {32, 32768}};
  for (const auto& [n_streams, n_cells] : sizes) {
    for (const uint32_t n_group : {1u, 4u, 8u}) {
      if (options.quick && n_group == 4) continue;
      shapes.push_back({n_streams, n_cells, n_group, 1});
    }
    for (const uint32_t n_group : {1u, 4u, 8u}) {
      if (!sustained && !(options.quick && n_group != 4)) shapes.push_back({n_streams, n_cells, n_group, 4});
    }
  }
  if (!options.shapes.empty()) shapes = options.shapes;
  const int launches = sustained ? 160 : 5;
  std::printf("\n%s, %u kv heads, head dim %u; us of one step, GB/s of the pages read, times faster than f16, SM clock\n\n",
              sustained ? "Decode, sustained (power limit)" : "Decode, boost clock", kHeads, kDim);
  std::printf("| shape | G | n_q | codec | us | GB/s | over f16 | SM MHz |\n|---|---|---|---|---|---|---|---|\n");
  std::vector<double> baseline;
  std::vector<kvt_codec_id> codecs = {KVT_CODEC_F16};
  for (const kvt_codec_id id : chosen_codecs(options)) codecs.push_back(id);
  for (const kvt_codec_id codec : codecs) {
    DecodeBench bench(codec, size_t{5} << 30);
    for (size_t i = 0; i < shapes.size(); ++i) {
      const Shape& s = shapes[i];
      const Timing t = bench.time(s, launches, sustained);
      if (codec == KVT_CODEC_F16) baseline.push_back(t.us);
      std::printf("| %s | %u | %u | %s | %.1f | %.0f | %.2f | %.0f |\n", shape_name(s).c_str(), s.n_group, s.n_queries,
                  kvt_codec_name(codec), t.us, bench.bytes(s) / t.us / 1e3, baseline[i] / t.us, t.mhz);
      std::fflush(stdout);
    }
  }
}

void bench_encode(const Options& options) {
  const uint32_t n_rows = 1u << 17;
  const size_t n_values = size_t{n_rows} * kHeads * kDim;
  void* src = allocate(n_values * 2);
  fill_halves(src, n_values, 5, 1.0f);
  auto* cells = static_cast<int64_t*>(allocate(size_t{n_rows} * sizeof(int64_t)));
  std::vector<int64_t> ordered(n_rows), scattered(n_rows);
  for (uint32_t i = 0; i < n_rows; ++i) ordered[i] = scattered[i] = i;
  std::mt19937 random(9);
  std::shuffle(scattered.begin(), scattered.end(), random);
  std::printf("\nEncode, fp16 rows of head dim %u, %u rows of %u heads; G rows of one head a second\n\n", kDim, n_rows, kHeads);
  std::printf(
      "| codec | keys, cells in order | values, in order | key and value pairs, in order | keys, random cells | values, random "
      "cells |\n");
  std::printf("|---|---|---|---|---|---|\n");
  std::vector<kvt_codec_id> codecs = {KVT_CODEC_F16};
  for (const kvt_codec_id id : chosen_codecs(options)) codecs.push_back(id);
  cudaEvent_t begin, end;
  KVT_BENCH_CHECK(cudaEventCreate(&begin));
  KVT_BENCH_CHECK(cudaEventCreate(&end));
  for (const kvt_codec_id codec : codecs) {
    double rate[2][2];
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
      const size_t page_bytes = kvt_page_bytes_for(codec, side, kDim);
      void* pages = allocate(page_bytes * kHeads * (n_rows / KVT_PAGE_TOKENS));
      kvt_cuda_encode_args a{};
      a.struct_size = sizeof a;
      a.codec = codec;
      a.side = side;
      a.head_dim = kDim;
      a.n_rows = n_rows;
      a.n_kv_heads = kHeads;
      a.src_type = KVT_CUDA_F16;
      a.src = src;
      a.src_head_stride = kDim * 2;
      a.src_row_stride = kHeads * a.src_head_stride;
      a.cells = cells;
      a.pages = pages;
      a.head_stride = page_bytes;
      a.page_stride = page_bytes * kHeads;
      for (int order = 0; order < 2; ++order) {
        KVT_BENCH_CHECK(
            cudaMemcpy(cells, (order ? scattered : ordered).data(), size_t{n_rows} * sizeof(int64_t), cudaMemcpyHostToDevice));
        std::vector<float> times;
        for (int i = 0; i < 6; ++i) {
          KVT_BENCH_CHECK(cudaEventRecord(begin, nullptr));
          if (kvt_cuda_encode(&a, nullptr) != KVT_OK) std::exit(1);
          KVT_BENCH_CHECK(cudaEventRecord(end, nullptr));
          KVT_BENCH_CHECK(cudaEventSynchronize(end));
          float ms = 0;
          KVT_BENCH_CHECK(cudaEventElapsedTime(&ms, begin, end));
          times.push_back(ms);
        }
        std::sort(times.begin(), times.end());
        rate[side][order] = static_cast<double>(n_rows) * kHeads / static_cast<double>(times[2]) / 1e6;
      }
      cudaFree(pages);
    }
    std::printf("| %s | %.2f | %.2f | %.2f | %.2f | %.2f |\n", kvt_codec_name(codec), rate[0][0], rate[1][0],
                1 / (1 / rate[0][0] + 1 / rate[1][0]), rate[0][1], rate[1][1]);
    std::fflush(stdout);
  }
  cudaFree(src);
  cudaFree(cells);
}

int usage() {
  std::fprintf(
      stderr,
      "usage: kvturbo_cuda_bench [--quick] [--decode | --encode | --engine | --sustained] [--codec NAME|all] [--shape B,CELLS,G,N_Q]...\n"
      "  Tables of decode attention over f16, of encoding, and of an engine's step; --sustained: seconds of one kernel, at the power "
      "limit.\n");
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--quick") {
      options.quick = true;
    } else if (arg == "--decode") {
      options.encode = options.engine = false;
    } else if (arg == "--encode") {
      options.decode = options.engine = false;
    } else if (arg == "--engine") {
      options.decode = options.encode = false;
    } else if (arg == "--sustained") {
      options.sustained = true;
      options.decode = options.encode = options.engine = false;
    } else if (arg == "--shape" && i + 1 < argc) {
      Shape s{};
      if (std::sscanf(argv[++i], "%u,%u,%u,%u", &s.n_streams, &s.n_cells, &s.n_group, &s.n_queries) != 4) return usage();
      if (s.n_streams == 0 || s.n_cells == 0 || s.n_cells % KVT_PAGE_TOKENS != 0) return usage();
      options.shapes.push_back(s);
    } else if (arg == "--codec" && i + 1 < argc) {
      options.codec = argv[++i];
    } else {
      return usage();
    }
  }
  const kvt_status status = kvt_cuda_device_status();
  if (status != KVT_OK) {
    std::fprintf(stderr, "kvturbo_cuda_bench: %s\n", kvt_status_string(status));
    return 1;
  }
  cudaDeviceProp device;
  KVT_BENCH_CHECK(cudaGetDeviceProperties(&device, 0));
  int driver = 0;
  KVT_BENCH_CHECK(cudaDriverGetVersion(&driver));
  std::printf("%s, compute capability %d.%d, %d multiprocessors, %.0f GiB, L2 %d MiB, CUDA %d.%d\n", device.name, device.major,
              device.minor, device.multiProcessorCount, static_cast<double>(device.totalGlobalMem) / (1 << 30),
              device.l2CacheSize >> 20, driver / 1000, driver % 1000 / 10);
  if (options.decode) bench_decode(options, false);
  if (options.encode) bench_encode(options);
  if (options.engine) bench_engine(chosen_codecs(options));
  if (options.sustained) bench_decode(options, true);
  return 0;
}
