// Key means of runs of cells that get their first rows (kvt_cuda_begin_means), predicted from what the run before decodes to. A block
// has a head and takes the runs in the order of the rows, since one may be predicted from another. Usually there are none.
#include <climits>

#include "cuda/decode_page.cuh"
#include "cuda/encode_source.cuh"
#include "cuda/head_dims.cuh"
#include "cuda/launch_overlapped.cuh"

namespace kvt::cuda {
namespace {

constexpr int kUnsettledCells = 16;  // at the end of a run, where drafts may lie that are not accepted yet
constexpr int kNewestCells = 64;
constexpr int kWarps = kDecodeThreads / 32;

struct BeginCall {
  EncodeCall source;
  CodeTables tables;
  const char* key_scale;
  int8_t* codes;  // the source's means, to be written
  float* units;
};

struct Run {
  uint32_t stream, head;
  int number;
};

template <int kDim>
struct Averages {
  float sum[2][kWarps][kDim];  // of all cells, of the newest
  int n[2];
  uint32_t largest;  // of the mean, as bits
};

__device__ __forceinline__ float& unit_at(const BeginCall& call, const Run& run) {
  return *reinterpret_cast<float*>(reinterpret_cast<char*>(call.units) + call.source.means.unit_offset(run.stream, run.head, run.number));
}
template <int kDim>
__device__ __forceinline__ int8_t* codes_at(const BeginCall& call, const Run& run) {
  return call.codes + call.source.means.code_offset(run.stream, run.head, run.number, kDim);
}

// Sums over the cells of the run before, as decoded.
template <int kDim, Coding kCoding>
__device__ void sum_cells(const BeginCall& call, const Run& run, char* page, float (&value)[32], Averages<kDim>& s) {
  constexpr int N = kDim / 16, kTokens = static_cast<int>(kPageTokens);
  const EncodeCall& source = call.source;
  const int run_cells = static_cast<int>(source.means.cells), end = run.number * run_cells - kUnsettledCells;
  const int first = max((run.number - 1) * run_cells, static_cast<int>(source.exact.n_first));
  const int lane = threadIdx.x % 16, warp = threadIdx.x / 32;
  const char* pages = source.pages + run.stream * source.stream_stride + run.head * source.head_stride;
  float sum[2][N] = {};
  int n[2] = {0, 0};
  if (threadIdx.x < 2) s.n[threadIdx.x] = 0;
  for (int page_number = first / kTokens; page_number * kTokens < end; ++page_number) {
    __syncthreads();  // the page before is no longer read
    load_page<true, kCoding>(call.tables, pages + static_cast<size_t>(page_number) * source.page_stride, page, value);
    __syncthreads();
    for (int token = threadIdx.x / 16; token < kTokens; token += kDecodeThreads / 16) {
      const int cell = page_number * kTokens + token;
      float x[N];
      decode_token<kDim, true, kCoding>(call.tables, page, value, token, lane, x);
      bool is_set = false;
#pragma unroll
      for (int i = 0; i < N; ++i) is_set = is_set || x[i] != 0;
      const uint32_t set_lanes = __ballot_sync(kFullWarp, is_set) >> (threadIdx.x & 16) & 0xffffu;
      if (set_lanes == 0 || cell < first || cell >= end) continue;
      ++n[0];
#pragma unroll
      for (int i = 0; i < N; ++i) sum[0][i] += x[i];
      if (cell < end - kNewestCells) continue;
      ++n[1];
#pragma unroll
      for (int i = 0; i < N; ++i) sum[1][i] += x[i];
    }
  }
  __syncthreads();
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    if (lane == 0) atomicAdd(&s.n[which], n[which]);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float both = sum[which][i] + __shfl_xor_sync(kFullWarp, sum[which][i], 16);
      s.sum[which][warp][16 * i + lane] = both;
    }
  }
  __syncthreads();
}

// Takes over the mean of the nearest run before that has one.
template <int kDim>
__device__ void settle_run(const BeginCall& call, const Run& run) {
  Run from = run;
  do {
    --from.number;
  } while (from.number >= 0 && unit_at(call, from) < 0);
  const float unit = from.number >= 0 ? unit_at(call, from) : 0.0f;
  if (from.number >= 0 && threadIdx.x < kDim) codes_at<kDim>(call, run)[threadIdx.x] = codes_at<kDim>(call, from)[threadIdx.x];
  if (threadIdx.x == 0) unit_at(call, run) = unit;
}

// The newest keys' mean is nearest to what comes, but a channel that has turned away from the run's mean by then will go on turning: it
// counts as far as the two agree.
template <int kDim>
__device__ void predict_run(const BeginCall& call, const Run& run, Averages<kDim>& s) {
  const int channel = threadIdx.x;
  float mean = 0;
  bool is_finite = true;
  if (threadIdx.x == 0) s.largest = 0;
  if (channel < kDim) {
    const Run before{run.stream, run.head, run.number - 1};
    const float scale = reinterpret_cast<const float*>(call.key_scale + run.head * call.source.key_scale_head_stride)[channel];
    const float offset = fmaxf(unit_at(call, before), 0.0f) * static_cast<float>(codes_at<kDim>(call, before)[channel]);
    float average[2];
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += s.sum[which][w][channel];
      average[which] = fmaf(sum / static_cast<float>(max(1, s.n[which])), scale, offset);
    }
    const float all = average[0], newest = 2 * s.n[1] >= kNewestCells ? average[1] : all, larger = fmaxf(all * all, newest * newest);
    mean = larger > 0 ? fmaxf(0.0f, all * newest / larger) * newest : 0.0f;
    is_finite = isfinite(all) && isfinite(newest) && isfinite(mean);
  }
  const bool is_all_finite = __syncthreads_and(is_finite);  // keys that are not finite teach nothing
  if (is_all_finite) atomicMax(&s.largest, __float_as_uint(fabsf(mean)));
  __syncthreads();
  const float unit = __uint_as_float(s.largest) / 127.0f, inverse = unit > 0 ? 1.0f / unit : 0.0f;
  if (channel < kDim) codes_at<kDim>(call, run)[channel] = inverse > 0 ? static_cast<int8_t>(rintf(mean * inverse)) : int8_t{0};
  if (threadIdx.x == 0) unit_at(call, run) = unit;
}

template <int kDim, Coding kCoding>
__global__ void __launch_bounds__(kDecodeThreads) begin_means_kernel(const __grid_constant__ BeginCall call) {
  static_assert(kDim <= kDecodeThreads);
  __shared__ __align__(16) char page[kMaxPageBytes<kDim, true, kCoding>];
  __shared__ float value[32];
  __shared__ Averages<kDim> averages;
  __shared__ int next;  // thread of the first row whose run has no mean
  __shared__ Run run;
  const EncodeCall& source = call.source;
  wait_for_predecessor();
  allow_successor();
  for (uint32_t base = 0; base < source.n_rows; base += kDecodeThreads) {
    const uint32_t row = base + threadIdx.x;
    const CellPlace place = row < source.n_rows ? place_of_row(source, row) : CellPlace{-1, 0};
    Run own{place.stream, blockIdx.x, 0};
    bool is_new = false;
    if (place.cell >= 0) {
      own.number = source.means.run_of(static_cast<int>(place.cell));
      is_new = unit_at(call, own) < 0;
    }
    while (__syncthreads_or(is_new)) {
      if (threadIdx.x == 0) next = INT_MAX;
      __syncthreads();
      if (is_new) atomicMin(&next, static_cast<int>(threadIdx.x));
      __syncthreads();
      if (static_cast<int>(threadIdx.x) == next) run = own;
      __syncthreads();
      sum_cells<kDim, kCoding>(call, run, page, value, averages);
      averages.n[0] < kNewestCells ? settle_run<kDim>(call, run) : predict_run<kDim>(call, run, averages);
      if (own.stream == run.stream && own.number == run.number) is_new = false;
      __syncthreads();
    }
  }
}

}  // namespace

void launch_begin_means(const SideLayout& layout, const EncodeCall& source, const float* key_scale, const kvt_cuda_encode_args& keys,
                        cudaStream_t stream, bool overlap) {
  const BeginCall call{source, make_code_tables(layout), reinterpret_cast<const char*>(key_scale), keys.key_mean, keys.key_mean_unit};
  for_head_dim(keys.head_dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    const auto launch = [&](auto kernel) { launch_overlapped(kernel, dim3(keys.n_kv_heads), kDecodeThreads, 0, stream, overlap, call); };
    switch (keys.codec) {
      case KVT_CODEC_HYBRID:
        return launch(begin_means_kernel<kDim, Coding::kSketch>);
      case KVT_CODEC_SCALAR43:
      case KVT_CODEC_K8V4:
      case KVT_CODEC_K8V3:
        return launch(begin_means_kernel<kDim, Coding::kScalar>);
      default:
        return launch(begin_means_kernel<kDim, Coding::kTrellis>);
    }
  });
}

}  // namespace kvt::cuda
