// The second launch of an attention call: one block for each output row adds up the shares of the blocks that met its unit,
// attends the exact rows, and rotates back.
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/element_types.cuh"
#include "cuda/launch_overlapped.cuh"
#include "cuda/row_visibility.cuh"
#include "cuda/warp_mma.cuh"
#include "cuda/warp_rotation.cuh"
#include "cuda/work_split.cuh"

namespace kvt::cuda {
namespace {

// What a warp has so far: v in the basis of the partial results, exact in the caller's.
template <int N>
struct Accumulated {
  float largest = -INFINITY, sum = 0, v[N] = {}, exact[N] = {};

  // Makes room for scores up to this one.
  __device__ void admit(float score) {
    const float grown = fmaxf(largest, score), keep = largest == -INFINITY ? 0.0f : exp2_fast(largest - grown);
    if (grown == -INFINITY) return;
    largest = grown;
    sum *= keep;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      v[i] *= keep;
      exact[i] *= keep;
    }
  }
  // Of an admitted score. NaN stays so.
  __device__ float weight(float score) const { return score == -INFINITY ? 0.0f : exp2_fast(score - largest); }
};

// Rows that a query attends in fp16: of a prepared step its list, else the first rows that it sees.
struct ExactRows {
  const ExactEntry* listed;
  int count, n_first;
  const char *first_k, *first_v, *ring_k, *ring_v;

  __device__ ExactRows(const AttendCall& call, uint32_t stream, uint32_t head, uint32_t query, int row_end) {
    n_first = static_cast<int>(call.exact_k.n_first);
    listed = nullptr;
    count = min(n_first, max(row_end, 0));
    if (call.step != nullptr) {
      const size_t at = static_cast<size_t>(stream) * call.args.n_queries + query;
      listed = reinterpret_cast<const ExactEntry*>(call.step + call.step_shape.entries_offset()) + at * call.step_shape.n_listed;
      count = static_cast<int>(call.step_shape.n_listed);
    }
    const auto of_head = [&](const uint16_t* rows, size_t stream_stride, size_t head_stride) {
      return reinterpret_cast<const char*>(rows) + stream * stream_stride + head * head_stride;
    };
    first_k = of_head(call.exact_k.first, call.exact_k.first_stream_stride, call.exact_k.first_head_stride);
    first_v = of_head(call.exact_v.first, call.exact_v.first_stream_stride, call.exact_v.first_head_stride);
    ring_k = of_head(call.exact_k.ring, call.exact_k.ring_stream_stride, call.exact_k.ring_head_stride);
    ring_v = of_head(call.exact_v.ring, call.exact_v.ring_stream_stride, call.exact_v.ring_head_stride);
  }
  template <int kDim>
  __device__ static const char* row_of(const char* first, const char* ring, int n_first, int row) {
    return row < n_first ? first + static_cast<size_t>(row) * kDim * 2 : ring + static_cast<size_t>(row - n_first) * kDim * 2;
  }
};

// Several rows a warp at a time, usually all that it has, so that their latencies overlap.
template <int kMergers, int kDimK, int N, class Row>
__device__ void attend_exact_rows(const AttendCall& call, uint32_t stream, uint32_t head, uint32_t row, int cells, int warp,
                                  int lane, Accumulated<N>& total) {
  constexpr int kBatch = 8, kPairs = kDimK / 64, kDimV = 32 * N;
  const kvt_cuda_attention& a = call.args;
  RowView view(call, stream, head, row, cells);
  view.first = 0;
  const ExactRows rows(call, stream, head, row / a.n_group, view.end);
  if (warp >= rows.count) return;
  const char* from = static_cast<const char*>(a.q) + stream * a.q_stream_stride + row / a.n_group * a.q_query_stride +
                     (head * a.n_group + row % a.n_group) * a.q_head_stride;
  float q[kPairs][2];
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
#pragma unroll
    for (int k = 0; k < 2; ++k) q[i][k] = load_element(from, a.q_type, 64 * i + 2 * lane + k);
  }
  for (int e = warp; e < rows.count; e += kBatch * kMergers) {
    ExactEntry entry[kBatch];
    float dot[kBatch];
    __half value[kBatch][N];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int at = min(e + b * kMergers, rows.count - 1);
      entry[b] = rows.listed == nullptr ? ExactEntry{at, 0.0f} : rows.listed[at];
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const char* key = ExactRows::row_of<kDimK>(rows.first_k, rows.ring_k, rows.n_first, entry[b].row);
      const char* v = ExactRows::row_of<kDimV>(rows.first_v, rows.ring_v, rows.n_first, entry[b].row);
      dot[b] = 0;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const float2 k = __half22float2(reinterpret_cast<const __half2*>(key)[32 * i + lane]);
        dot[b] = fmaf(q[i][0], k.x, dot[b]);
        dot[b] = fmaf(q[i][1], k.y, dot[b]);
      }
#pragma unroll
      for (int i = 0; i < N; i += 2)  // a lane's coordinates are consecutive
        *reinterpret_cast<__half2*>(&value[b][i]) = reinterpret_cast<const __half2*>(v)[Row::coordinate(i, lane) / 2];
    }
    float score[kBatch], largest = -INFINITY;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const float raw = warp_sum(dot[b]) * a.scale * kLog2e;
      score[b] = e + b * kMergers >= rows.count ? -INFINITY
                 : rows.listed == nullptr       ? view.score(raw, entry[b].row)
                                                : view.finish(raw, entry[b].mask);
      largest = fmaxf(largest, score[b]);
    }
    total.admit(largest);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const float weight = total.weight(score[b]);
      total.sum += weight;
      if (weight == 0.0f) continue;  // a removed row is not looked at
#pragma unroll
      for (int i = 0; i < N; ++i) total.exact[i] = fmaf(weight, __half2float(value[b][i]), total.exact[i]);
    }
  }
}

// kMergers: warps of a block, which share the shares.
template <int kMergers, int kDimK, int kDimV, bool kCodes>
__global__ void __launch_bounds__(32 * kMergers) merge_kernel(const __grid_constant__ AttendCall call) {
  using Row = WarpRow<kDimV>;
  constexpr int N = Row::kCount, kVector = N >= 4 ? 4 : 2;  // a lane's coordinates are consecutive
  using Vector = std::conditional_t<kVector == 4, float4, float2>;
  __shared__ float largest_of[kMergers], sum_of[kMergers], parts[kMergers][2][kDimV];
  const kvt_cuda_attention& a = call.args;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t unit = blockIdx.x / call.n_rows, row = blockIdx.x % call.n_rows, stream = unit / a.n_kv_heads,
                 head = unit % a.n_kv_heads;

  // The predecessor is the call's first kernel, which began when everything before it was complete; only its own results are to
  // be waited for, and the exact rows need not. And the successor may be launched: it waits for this kernel's end in its turn.
  allow_successor();
  const PageCount count = count_pages(a, stream);
  const int all = count.all * static_cast<int>(a.n_kv_heads), cells = stream_cells(a, stream), pages = pages_of_cells(cells);
  const int first = count.before * static_cast<int>(a.n_kv_heads) + static_cast<int>(head) * pages;
  const PageSplit split(call.n_blocks, all);
  const uint32_t end = pages > 0 ? split.block_of(first + pages - 1) + 1 : 0;
  Accumulated<N> total;
  if constexpr (kCodes) {
    if (a.exact_k != nullptr) attend_exact_rows<kMergers, kDimK, N, Row>(call, stream, head, row, cells, warp, lane, total);
  }
  wait_for_predecessor();
  if (pages > 0) {
    // Weights of 64 blocks at a time, two a lane, the same in every warp; then each warp adds up its part of the blocks.
    for (uint32_t base = split.block_of(first); base < end; base += 64) {
      float largest[2], sum[2], weight[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const uint32_t block = base + 32 * k + lane;
        const size_t at = static_cast<size_t>(block + unit) * call.n_rows + row;
        largest[k] = block < end ? call.partial_max[at] : -INFINITY;
        sum[k] = block < end ? call.partial_sum[at] : 0.0f;
      }
      total.admit(warp_max(fmaxf(largest[0], largest[1])));
#pragma unroll
      for (int k = 0; k < 2; ++k) {  // where no score was a number the sum is 0, or NaN and stays so
        weight[k] = largest[k] == -INFINITY ? 0.0f : exp2_fast(largest[k] - total.largest);
        sum[k] = largest[k] == -INFINITY ? sum[k] : weight[k] * sum[k];
      }
      const float shares = warp_sum(sum[0] + sum[1]);
      if (warp == 0) total.sum += shares;  // counted once
      const int n = static_cast<int>(min(64u, end - base));
#pragma unroll 4
      for (int j = warp; j < n; j += kMergers) {
        const float w = __shfl_sync(0xffffffffu, j < 32 ? weight[0] : weight[1], j % 32);
        const float* acc = call.partial_acc + (static_cast<size_t>(base + j + unit) * call.n_rows + row) * kDimV;
#pragma unroll
        for (int i = 0; i < N; i += kVector) {
          const Vector v = *reinterpret_cast<const Vector*>(acc + Row::coordinate(i, lane));
#pragma unroll
          for (int k = 0; k < kVector; ++k) total.v[i + k] = fmaf(w, reinterpret_cast<const float*>(&v)[k], total.v[i + k]);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < N; ++i) {
    parts[warp][0][Row::coordinate(i, lane)] = total.v[i];
    parts[warp][1][Row::coordinate(i, lane)] = total.exact[i];
  }
  if (lane == 0) {
    largest_of[warp] = total.largest;
    sum_of[warp] = total.sum;
  }
  __syncthreads();
  if (warp != 0) return;
  const uint32_t q_head = head * a.n_group + row % a.n_group;
  const float sink = a.sinks == nullptr ? -INFINITY : a.sinks[q_head] * kLog2e;
  float largest = sink;
  for (int w = 0; w < kMergers; ++w) largest = fmaxf(largest, largest_of[w]);
  float sum = sink == -INFINITY ? 0.0f : exp2_fast(sink - largest), v[N] = {}, exact[N] = {};
  for (int w = 0; w < kMergers; ++w) {
    // A NaN sum stays NaN, whatever its maximum.
    const float weight = largest_of[w] == -INFINITY ? 0.0f : exp2_fast(largest_of[w] - largest);
    sum += weight * sum_of[w];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      v[i] += weight * parts[w][0][Row::coordinate(i, lane)];
      exact[i] += weight * parts[w][1][Row::coordinate(i, lane)];
    }
  }
  const float inverse = sum == 0 ? 0.0f : 1.0f / sum;  // a row without cells is zero
  if constexpr (kCodes) {
    Row::transform(v, lane);
    Row::flip(call.signs[0], v, lane);
  }
  char* out = static_cast<char*>(a.out) + stream * a.out_stream_stride + row / a.n_group * a.out_query_stride +
              q_head * a.out_head_stride;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    store_element(out, a.out_type, Row::coordinate(i, lane), (v[i] * (kCodes ? call.value_factor : 1.0f) + exact[i]) * inverse);
  }
}

template <int kMergers, int kDimK, int kDimV>
void launch_mergers(const AttendCall& call, cudaStream_t stream, bool overlap) {
  const dim3 grid(call.args.n_streams * call.args.n_kv_heads * call.n_rows);
  call.args.codec == KVT_CODEC_F16
      ? launch_overlapped(merge_kernel<kMergers, kDimK, kDimV, false>, grid, 32 * kMergers, 0, stream, overlap, call)
      : launch_overlapped(merge_kernel<kMergers, kDimK, kDimV, true>, grid, 32 * kMergers, 0, stream, overlap, call);
}

template <int kDimK, int kDimV>
void launch_dims(const AttendCall& call, cudaStream_t stream, bool overlap) {
  // A unit has two shares more than the blocks divide into, at most. Few of them are one warp's work.
  const uint32_t n_shares = call.n_blocks / (call.args.n_streams * call.args.n_kv_heads) + 2;
  n_shares <= 4 && call.exact_k.n_first + call.args.recent_window <= 8 ? launch_mergers<1, kDimK, kDimV>(call, stream, overlap)
                                          : launch_mergers<8, kDimK, kDimV>(call, stream, overlap);
}

}  // namespace

bool can_overlap() {
  cudaFuncAttributes attributes{};  // all kernels are compiled for the same architectures
  return cudaFuncGetAttributes(&attributes, merge_kernel<8, 128, 128, true>) == cudaSuccess && attributes.ptxVersion >= 90;
}

void launch_merge(const AttendCall& call, cudaStream_t stream, bool overlap) {
  switch (call.args.head_dim_k) {
    case 64:
      return launch_dims<64, 64>(call, stream, overlap);
    case 128:
      return launch_dims<128, 128>(call, stream, overlap);
    case 192:
      return launch_dims<192, 128>(call, stream, overlap);
    default:
      return launch_dims<256, 256>(call, stream, overlap);
  }
}

}  // namespace kvt::cuda
