// The first half of an append that is completed later (kvt_cuda_keep_rows): new rows of keys and values go to the exact rows, and as
// fp16 to where the encoder will find them.
#include <algorithm>

#include "cuda/exact_store.cuh"
#include "cuda/head_dims.cuh"
#include "cuda/launch_overlapped.cuh"

namespace kvt::cuda {
namespace {

struct KeepCall {
  EncodeCall side[2];  // by kvt_side
  __half* copy[2];     // [n_rows, n_kv_heads, head_dim]
};

template <int kDim>
__device__ __forceinline__ void keep_rows(const EncodeCall& call, __half* copy, ExactScratch& scratch) {
  constexpr int kWarpItems = 2;  // rows of a head that a warp has under way
  const int lane = threadIdx.x % 32;
  const uint32_t n_items = call.n_rows * call.n_kv_heads, n_warps = gridDim.x * kEncodeWarps;
  for (uint32_t base = blockIdx.x * kEncodeWarps + threadIdx.x / 32; base < n_items; base += kWarpItems * n_warps) {
    uint32_t x[kWarpItems][(kDim + 31) / 32];
#pragma unroll
    for (int b = 0; b < kWarpItems; ++b) {
      const uint32_t item = min(base + b * n_warps, n_items - 1);
      load_bits_of_row<kDim>(call.src + source_offset(call, item / call.n_kv_heads, item % call.n_kv_heads), call.src_type, lane, x[b]);
    }
#pragma unroll
    for (int b = 0; b < kWarpItems; ++b) {
      const uint32_t item = base + b * n_warps;
      if (item >= n_items) continue;
#pragma unroll
      for (int i = 0; i < (kDim + 31) / 32; ++i) {
        if (32 * i + lane < kDim) copy[static_cast<size_t>(item) * kDim + 32 * i + lane] = __float2half_rn(element_value(x[b][i], call.src_type));
      }
    }
  }
  for (uint32_t stream = blockIdx.x; stream < call.exact.n_streams; stream += gridDim.x) store_exact_rows<kDim>(call, scratch, stream);
}

// blockIdx.y: side.
template <int kDimK, int kDimV>
__global__ void __launch_bounds__(kEncodeThreads) keep_kernel(const __grid_constant__ KeepCall call) {
  __shared__ ExactScratch scratch;
  allow_successor();  // attention comes next, whose beginning takes as long as all this
  wait_for_predecessor();
  if (blockIdx.y == KVT_KEY) {
    keep_rows<kDimK>(call.side[KVT_KEY], call.copy[KVT_KEY], scratch);
  } else {
    keep_rows<kDimV>(call.side[KVT_VALUE], call.copy[KVT_VALUE], scratch);
  }
}

}  // namespace

void launch_keep_rows(const EncodePair& pair, void* keys, void* values, cudaStream_t stream, bool overlap) {
  const KeepCall call{{pair.side[KVT_KEY], pair.side[KVT_VALUE]}, {static_cast<__half*>(keys), static_cast<__half*>(values)}};
  const dim3 grid(std::clamp(pair.side[KVT_KEY].exact.n_streams, 1u, 64u), 2);
  for_head_dim(pair.side[KVT_KEY].head_dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    if constexpr (kDim == 192) {
      if (pair.side[KVT_VALUE].head_dim == 128)
        return launch_overlapped(keep_kernel<192, 128>, grid, kEncodeThreads, 0, stream, overlap, call);
    }
    launch_overlapped(keep_kernel<kDim, kDim>, grid, kEncodeThreads, 0, stream, overlap, call);
  });
}

}  // namespace kvt::cuda
