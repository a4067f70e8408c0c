// Steps 1 to 3, 5 and 6 of format.md section 5 for the rows of a block; step 4 is the quantiser's, which scalar and trellis
// codecs differ in. A block encodes 32 rows of one head, two rows for each warp at a time.
#ifndef KVT_CUDA_ENCODE_BLOCK_CUH
#define KVT_CUDA_ENCODE_BLOCK_CUH

#include "cuda/encode_row.cuh"
#include "cuda/encode_store.cuh"

namespace kvt::cuda {
namespace {

// Quantiser::Shared: its shared memory of a block; Quantiser::run(tables, shared, lane, y, codes, yq) for both halves of a
// warp.
template <int kDim, bool kKey, class Quantiser>
__device__ __forceinline__ void encode_block(const EncodeCall& call, const EncodeTables& tables,
                                             typename Quantiser::Shared& shared, EncodedRows<kDim>& rows) {
  constexpr int N = kDim / 16;
  const int lane = threadIdx.x % 16, half_warp = threadIdx.x / 16;
  const uint32_t first = blockIdx.x * kBlockRows;
  const uint32_t signs = call.tables.signs[0][lane];
  constexpr int kPasses = kBlockRows / (kEncodeThreads / 16);
  float rows_of_half[kPasses][N] = {};  // all loaded before any is used
  int64_t cells[kPasses];
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const uint32_t row = first + pass * (kEncodeThreads / 16) + half_warp;
    cells[pass] = row < call.n_rows ? call.cells[row] : -1;
    if (row < call.n_rows) {
      load_row(call.src + row * call.src_row_stride + blockIdx.y * call.src_head_stride, call.src_type, lane,
               rows_of_half[pass]);
    }
  }
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int t = pass * (kEncodeThreads / 16) + half_warp;
    const int64_t cell = cells[pass];
    float(&x)[N] = rows_of_half[pass];
    const float n = sqrtf(ordered_dot(x, x));
    rotate_forward(signs, lane, x);
    const float inverse = 1.0f / n;
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] *= inverse;
    uint8_t codes[N];
    float quantised[N];
    Quantiser::run(tables, shared, lane, x, codes, quantised);
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

inline dim3 encode_grid(const EncodeCall& call) { return dim3((call.n_rows + kBlockRows - 1) / kBlockRows, call.n_kv_heads); }

// launch(std::integral_constant<int, head_dim>)
template <class Launch>
void for_head_dim(uint32_t head_dim, const Launch& launch) {
  switch (head_dim) {
    case 64:
      return launch(std::integral_constant<int, 64>{});
    case 80:
      return launch(std::integral_constant<int, 80>{});
    case 96:
      return launch(std::integral_constant<int, 96>{});
    case 112:
      return launch(std::integral_constant<int, 112>{});
    case 128:
      return launch(std::integral_constant<int, 128>{});
    case 192:
      return launch(std::integral_constant<int, 192>{});
    default:
      return launch(std::integral_constant<int, 256>{});
  }
}

}  // namespace
}  // namespace kvt::cuda

#endif
