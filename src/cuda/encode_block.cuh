// Steps 1 to 3, 5 and 6 of format.md section 5 for the rows of a block; step 4 is the quantiser's, which scalar and trellis
// codecs differ in. A block encodes 32 rows of one head, two rows for each warp at a time.
#ifndef KVT_CUDA_ENCODE_BLOCK_CUH
#define KVT_CUDA_ENCODE_BLOCK_CUH

#include <algorithm>

#include "cuda/encode_row.cuh"
#include "cuda/encode_store.cuh"
#include "cuda/head_dims.cuh"

namespace kvt::cuda {
namespace {

// fp16 and back, then conditioned, as an engine's encoder does it.
template <int N>
__device__ __forceinline__ void condition_row(const EncodeCall& call, uint32_t head, int lane, float (&x)[N]) {
  if (call.round_to_half) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = __half2float(__float2half_rn(x[i]));
  }
  if (call.key_mean == nullptr) return;
  const auto* mean = reinterpret_cast<const float*>(call.key_mean + head * call.key_conditioning_head_stride);
  const auto* inverse_scale = reinterpret_cast<const float*>(call.key_inverse_scale + head * call.key_conditioning_head_stride);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = (x[i] - mean[16 * i + lane]) * inverse_scale[16 * i + lane];
}

// Quantiser::Shared: its shared memory of a block; Quantiser::run(tables, shared, lane, valid, y, codes, yq) for both halves of
// a warp, of which one may have no row.
template <int kDim, bool kKey, class Quantiser>
__device__ __forceinline__ void encode_block(const EncodeCall& call, const EncodeTables& tables,
                                             typename Quantiser::Shared& shared, EncodedRows<kDim>& rows) {
  constexpr int N = kDim / 16;
  static_assert(sizeof(ExactScratch) <= sizeof(EncodedRows<kDim>));
  if (store_exact_rows_in_last(call, &rows)) return;
  const int lane = threadIdx.x % 16, half_warp = threadIdx.x / 16;
  const uint32_t first = blockIdx.x * kBlockRows;
  if (first >= call.n_rows) return;
  const uint32_t signs = call.tables.signs[0][lane];
  constexpr int kPasses = kBlockRows / (kEncodeThreads / 16);
  float rows_of_half[kPasses][N] = {};  // all loaded before any is used
  CellPlace places[kPasses];
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const uint32_t row = first + pass * (kEncodeThreads / 16) + half_warp;
    places[pass] = row < call.n_rows ? place_of_row(call, row) : CellPlace{-1, 0};
    if (row < call.n_rows) {
      const size_t at = source_offset(call, row, blockIdx.y);
      load_row(call.src + at, call.src_type, lane, rows_of_half[pass]);
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
      condition_row(call, blockIdx.y, lane, rows_of_half[pass]);
    }
  }
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int t = pass * (kEncodeThreads / 16) + half_warp;
    const int64_t cell = places[pass].cell;
    if (__all_sync(kFullWarp, cell < 0)) {  // few new rows leave most warps without any
      if (lane == 0) rows.cells[t] = -1;
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
    Quantiser::run(tables, shared, lane, cell >= 0, x, codes, quantised);
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
    for (int i = 0; i < N; ++i) rows.codes[t][16 * i + lane] = encoded ? codes[i] : uint8_t{0};
    if (lane == 0) {
      rows.cells[t] = cell;
      rows.streams[t] = places[pass].stream;
      rows.norm[t] = encoded ? norm : finite ? uint16_t{0} : kNanNorm;
      rows.residual[t] = encoded ? residual : finite ? uint16_t{0} : kNanNorm;
      if (cell >= 0 && !finite && call.n_refused != nullptr) atomicAdd(call.n_refused, 1u);
    }
  }
  __syncthreads();
  store_norms(call, rows);
  if (kKey) {
    store_keys(call, rows);
  } else {
    store_values(call, rows);
  }
}

// One row of blocks for each head, and one for the exact rows.
inline dim3 encode_grid(const EncodeCall& call) {
  const uint32_t n = (call.n_rows + kBlockRows - 1) / kBlockRows;
  return dim3(std::max(n, std::min(call.exact.n_streams, 64u)), call.n_kv_heads + (call.exact.n_streams > 0));
}

}  // namespace
}  // namespace kvt::cuda

#endif
