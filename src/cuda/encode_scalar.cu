// Encoders of hybrid and scalar43, of 8-bit keys, and of f16 rows.
#include <type_traits>

#include "cuda/encode_block.cuh"

namespace kvt::cuda {
namespace {

template <int kBits, bool kResidual>
struct ScalarQuantiser {
  static constexpr bool kHasResidual = kResidual, kTrellis = false;
  static constexpr int kMinBlocks = 1;
  struct Shared {};

  // Uniform levels: the largest coordinate gets the largest one.
  template <int N>
  __device__ static void run_uniform(float step, const float (&y)[N], uint8_t (&codes)[N], float (&quantised)[N]) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) largest = fmaxf(largest, fabsf(y[i]));
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, distance));
    const float scale = static_cast<float>(kUniform7Largest) / largest;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float level = rintf(y[i] * scale);
      codes[i] = static_cast<uint8_t>(static_cast<int>(level) + 64);
      quantised[i] = step * level;
    }
  }

  // Number of thresholds below y, by descending their search tree. A table of up to 32 words in shared memory has no bank
  // conflicts.
  template <int N>
  __device__ static void run(const EncodeTables& tables, Shared&, int, bool, const float (&y)[N], uint8_t (&codes)[N],
                             float (&quantised)[N]) {
    if constexpr (kBits == 4) {
      if (tables.code_bits == 8) return run_uniform(tables.value[0], y, codes, quantised);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      int node = 1;
#pragma unroll
      for (int level = 0; level < kBits; ++level) node = 2 * node + (y[i] > tables.tree[node]);
      const int code = node - (1 << kBits);
      codes[i] = static_cast<uint8_t>(code);
      quantised[i] = tables.value[code];
    }
  }
};

template <int, bool kKey>
struct HybridQuantiser {
  using type = std::conditional_t<kKey, ScalarQuantiser<3, true>, ScalarQuantiser<3, false>>;
};
template <int, bool kKey>
struct Scalar43Quantiser {
  using type = std::conditional_t<kKey, ScalarQuantiser<4, false>, ScalarQuantiser<3, false>>;
};

__device__ __forceinline__ uint32_t half_bits(float x, bool& refused) {
  refused = refused || !(fabsf(x) <= 65504.0f);
  return isnan(x) ? (__float_as_uint(x) >> 16 & 0x8000u) | kNanNorm : __half_as_ushort(__float2half_rn(x));
}

// One warp a row, two coordinates a lane at a time.
__global__ void __launch_bounds__(kEncodeThreads) encode_halves_kernel(const __grid_constant__ EncodeCall call) {
  const uint32_t row = blockIdx.x * (kEncodeThreads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= call.n_rows) return;
  const auto [cell, stream] = place_of_row(call, row);
  if (cell < 0) return;
  const char* src = call.src + source_offset(call, row, blockIdx.y);
  auto* dst =
      reinterpret_cast<uint32_t*>(page_of(call, stream, cell) + static_cast<size_t>(cell % kPageTokens) * call.head_dim * 2);
  float x[kMaxHeadDim / 64][2];
#pragma unroll
  for (uint32_t i = 0; i < kMaxHeadDim / 64; ++i) {
    const uint32_t at = 64 * i + 2 * lane;
    if (at >= call.head_dim) continue;
    x[i][0] = load_element(src, call.src_type, at);
    x[i][1] = load_element(src, call.src_type, at + 1);
  }
  if (call.unchanged != nullptr) {
    const char* before = call.unchanged + source_offset(call, row, blockIdx.y);
    bool differs = false;
#pragma unroll
    for (uint32_t i = 0; i < kMaxHeadDim / 64; ++i) {
      const uint32_t at = 64 * i + 2 * lane;
      if (at >= call.head_dim) continue;
      differs = differs || __float_as_uint(x[i][0]) != __float_as_uint(load_element(before, call.src_type, at)) ||
                __float_as_uint(x[i][1]) != __float_as_uint(load_element(before, call.src_type, at + 1));
    }
    if (!__any_sync(kFullWarp, differs)) return;
  }
  bool refused = false;
#pragma unroll
  for (uint32_t i = 0; i < kMaxHeadDim / 64; ++i) {
    if (64 * i + 2 * lane < call.head_dim) dst[32 * i + lane] = half_bits(x[i][0], refused) | half_bits(x[i][1], refused) << 16;
  }
  if (__any_sync(kFullWarp, refused) && lane == 0 && call.n_refused != nullptr) atomicAdd(call.n_refused, 1u);
}

}  // namespace

void launch_encode_halves(const EncodeCall& call, cudaStream_t stream) {
  constexpr uint32_t kRows = kEncodeThreads / 32;
  encode_halves_kernel<<<dim3((call.n_rows + kRows - 1) / kRows, call.n_kv_heads), kEncodeThreads, 0, stream>>>(call);
}

void launch_encode_hybrid(EncodePair& pair, cudaStream_t stream, bool overlap) {
  launch_encode_dims<HybridQuantiser>(pair, stream, overlap);
}
void launch_encode_scalar43(EncodePair& pair, cudaStream_t stream, bool overlap) {
  launch_encode_dims<Scalar43Quantiser>(pair, stream, overlap);
}

}  // namespace kvt::cuda
