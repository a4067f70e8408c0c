// Steps 1 to 3, 5 and 6 of format.md section 5 for the rows of a block; step 4 is the quantiser's, which scalar and trellis
// codecs differ in. A block encodes up to 32 rows of one head, two rows for each warp at a time: few rows are spread over
// blocks and warps, since then latency counts.
#ifndef KVT_CUDA_ENCODE_BLOCK_CUH
#define KVT_CUDA_ENCODE_BLOCK_CUH

#include <algorithm>

#include "cuda/encode_row.cuh"
#include "cuda/encode_store.cuh"
#include "cuda/head_dims.cuh"
#include "cuda/launch_overlapped.cuh"

namespace kvt::cuda {
namespace {

// fp16 and back, then conditioned, as an engine's encoder does it.
template <int N>
__device__ __forceinline__ void condition_row(const EncodeCall& call, const CellPlace& place, uint32_t head, int lane,
                                              float (&x)[N]) {
  if (call.round_to_half) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = __half2float(__float2half_rn(x[i]));
  }
  if (call.key_inverse_scale == nullptr || place.cell < 0) return;
  const int run = call.means.run_of(static_cast<int>(place.cell));
  const int8_t* mean = call.means.codes_of(place.stream, head, run, 16 * N);
  const float unit = call.means.unit_of(place.stream, head, run);
  const auto* inverse_scale = reinterpret_cast<const float*>(reinterpret_cast<const char*>(call.key_inverse_scale) +
                                                             head * call.key_scale_head_stride);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = (x[i] - unit * static_cast<float>(mean[16 * i + lane])) * inverse_scale[16 * i + lane];
}

// In shared memory. Quantiser::Shared: its part of it; Quantiser::run(tables, quantiser, lane, valid, y, codes, yq) for both halves of a
// warp, of which one may have no row.
template <int kDim, bool kKey, class Quantiser>
struct BlockEncoder {
  EncodedRows<kDim> rows;
  EncodeTables tables;
  typename Quantiser::Shared quantiser;
  static constexpr int kMinBlocks = Quantiser::kMinBlocks;

  // Blocks of the grid's last row see to the exact rows instead, and use the memory for that.
  __device__ __forceinline__ void run(const EncodeCall& call, uint32_t block_rows);
};

template <int kDim, bool kKey, class Quantiser>
__device__ __forceinline__ void BlockEncoder<kDim, kKey, Quantiser>::run(const EncodeCall& call, uint32_t block_rows) {
  constexpr int N = kDim / 16;
  if (blockIdx.y >= call.n_kv_heads) {
    wait_for_predecessor();
    allow_successor();
    for (uint32_t stream = blockIdx.x; stream < call.exact.n_streams; stream += gridDim.x)
      store_exact_rows<kDim>(call, *reinterpret_cast<ExactScratch*>(this), stream);
    return;
  }
  if (threadIdx.x < 32) {
    tables.tree[threadIdx.x] = call.tables.tree[threadIdx.x];
    tables.value[threadIdx.x] = call.tables.value[threadIdx.x];
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < 3; ++i) tables.scales[i] = call.tables.scales[i];
    tables.n_scales = call.tables.n_scales;
    tables.code_bits = call.tables.code_bits;
  }
  wait_for_predecessor();
  allow_successor();
  // The first rows go to warps of their own.
  const int lane = threadIdx.x % 16, half_warp = threadIdx.x / 32 + threadIdx.x / 16 % 2 * kEncodeWarps;
  const uint32_t first = blockIdx.x * block_rows;
  if (first >= call.n_rows) return;
  const int n_here = static_cast<int>(min(block_rows, call.n_rows - first));
  const uint32_t signs = call.tables.signs[0][lane];
  constexpr int kPasses = kBlockRows / (kEncodeThreads / 16);
  float rows_of_half[kPasses][N] = {};  // all loaded before any is used
  CellPlace places[kPasses];
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int t = pass * (kEncodeThreads / 16) + half_warp;
    const uint32_t row = first + t;
    places[pass] = {-1, 0};
    if (t < n_here) {
      const size_t at = source_offset(call, row, blockIdx.y);
      load_row(call.src + at, call.src_type, lane, rows_of_half[pass]);
      places[pass] = place_of_row(call, row);
      if (call.unchanged != nullptr) {
        float before[N];
        load_row(call.unchanged + at, call.src_type, lane, before);
        bool differs = false;
#pragma unroll
        for (int i = 0; i < N; ++i)
          differs = differs || __float_as_uint(rows_of_half[pass][i]) != __float_as_uint(before[i]);
        const uint32_t half_mask = 0xffffu << (threadIdx.x & 16);
        if (__ballot_sync(half_mask, differs) == 0) places[pass].cell = -1;
      }
      condition_row(call, places[pass], blockIdx.y, lane, rows_of_half[pass]);
    }
  }
  if (threadIdx.x == 0) rows.n = n_here;
  __syncthreads();  // the tables are complete
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int t = pass * (kEncodeThreads / 16) + half_warp;
    const int64_t cell = places[pass].cell;
    if (__all_sync(kFullWarp, cell < 0)) {  // few new rows leave most warps without any
      if (lane == 0 && t < n_here) rows.cells[t] = -1;
      continue;
    }
    float(&x)[N] = rows_of_half[pass];
    const float n = sqrtf(ordered_dot(x, x));
    rotate_forward(signs, lane, x);
    const float inverse = 1.0f / n;
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] *= inverse;
    uint8_t codes[N];
    float quantised[N];
    Quantiser::run(tables, quantiser, lane, cell >= 0, x, codes, quantised);
    uint16_t norm, residual = 0;
    if (call.raw_norm) {
      norm = stored_norm(n);
    } else if (kKey) {
      norm = stored_norm(n * (ordered_dot(x, x) / ordered_dot(x, quantised)));
    } else {
      norm = stored_norm(n * (ordered_dot(x, quantised) / ordered_dot(quantised, quantised)));
    }
    if (Quantiser::kHasResidual) {
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = x[i] - quantised[i];
      residual = stored_norm((n * sqrtf(ordered_dot(x, x))) * (1.0f / sqrtf(static_cast<float>(kDim))));
      rotate_forward(call.tables.signs[1][lane], lane, x);
#pragma unroll
      for (int i = 0; i < N; ++i) codes[i] = static_cast<uint8_t>(codes[i] | (x[i] < 0.0f ? 8 : 0));
    }
    const bool finite = isfinite(n), encoded = finite && n > 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (t < n_here) rows.codes[t][16 * i + lane] = encoded ? codes[i] : uint8_t{0};
    }
    if (lane == 0 && t < n_here) {
      rows.cells[t] = cell;
      rows.streams[t] = places[pass].stream;
      rows.norm[t] = encoded ? norm : finite ? uint16_t{0} : kNanNorm;
      rows.residual[t] = encoded ? residual : finite ? uint16_t{0} : kNanNorm;
      if (cell >= 0 && !finite && call.n_refused != nullptr) atomicAdd(call.n_refused, 1u);
    }
  }
  __syncthreads();
  store_norms(call, rows);
  if constexpr (!Quantiser::kTrellis && !kKey) {
    store_codes<false, 3>(call, rows);
  } else {
    switch (call.tables.code_bits) {
      case 4:
        return store_codes<kKey, 4>(call, rows);
      case 3:
        if constexpr (Quantiser::kTrellis) return store_codes<kKey, 3>(call, rows);
        break;
      case 2:
        if constexpr (Quantiser::kTrellis) return store_codes<kKey, 2>(call, rows);
        break;
      default:
        if constexpr (!Quantiser::kTrellis) store_codes<kKey, 8>(call, rows);
    }
  }
}

template <class Key, class Value>
__global__ void __launch_bounds__(kEncodeThreads, std::min(Key::kMinBlocks, Value::kMinBlocks))
    encode_kernel(const __grid_constant__ EncodePair pair) {
  extern __shared__ __align__(16) char memory[];
  if (pair.first_side + blockIdx.z == KVT_KEY) {
    reinterpret_cast<Key*>(memory)->run(pair.side[KVT_KEY], pair.block_rows);
  } else {
    reinterpret_cast<Value*>(memory)->run(pair.side[KVT_VALUE], pair.block_rows);
  }
}

template <class Key, class Value>
void launch_encode(EncodePair& pair, cudaStream_t stream, bool overlap) {
  const EncodeCall& call = pair.any();
  // As many rows in a block as give two blocks to each multiprocessor of a large device, if there are so few.
  constexpr uint64_t kManyBlocks = 256;
  const uint64_t n_all = uint64_t{call.n_rows} * call.n_kv_heads * pair.n_sides;
  pair.block_rows = static_cast<uint32_t>(std::min<uint64_t>(kBlockRows, (n_all + kManyBlocks - 1) / kManyBlocks));
  uint32_t n_streams = 0;  // of exact rows
  for (uint32_t i = 0; i < pair.n_sides; ++i) n_streams = std::max(n_streams, pair.side[pair.first_side + i].exact.n_streams);
  // One row of blocks for each head, and one for the exact rows.
  const dim3 grid(std::max((call.n_rows + pair.block_rows - 1) / pair.block_rows, std::min(n_streams, 64u)),
                  call.n_kv_heads + (n_streams > 0), pair.n_sides);
  launch_overlapped(encode_kernel<Key, Value>, grid, kEncodeThreads, std::max({sizeof(Key), sizeof(Value), sizeof(ExactScratch)}), stream, overlap, pair);
}

// For all head dims; Quantiser<kDim, kKey>::type is the quantiser of a side.
template <template <int, bool> class Quantiser>
void launch_encode_dims(EncodePair& pair, cudaStream_t stream, bool overlap) {
  for_head_dim(pair.any().head_dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    using Key = BlockEncoder<kDim, true, typename Quantiser<kDim, true>::type>;
    if constexpr (kDim == 192) {
      if (pair.n_sides == 2 && pair.side[KVT_VALUE].head_dim == 128)
        return launch_encode<Key, BlockEncoder<128, false, typename Quantiser<128, false>::type>>(pair, stream, overlap);
    }
    launch_encode<Key, BlockEncoder<kDim, false, typename Quantiser<kDim, false>::type>>(pair, stream, overlap);
  });
}

}  // namespace
}  // namespace kvt::cuda

#endif
