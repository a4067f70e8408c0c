// The rotation of queries and results in one warp. fp32 in any order: only encoders must round as format.md says.
// Lane l holds the coordinates a * p + l * kRun + j in v[a * kRun + j]: d = m * p, p = 32 * kRun.
#ifndef KVT_CUDA_WARP_ROTATION_CUH
#define KVT_CUDA_WARP_ROTATION_CUH

#include <cstdint>

namespace kvt::cuda {
namespace {

template <int kDim>
struct WarpRow {
  static constexpr int kPower = kDim & -kDim, kOdd = kDim / kPower, kRun = kPower / 32, kCount = kDim / 32;
  static_assert(kOdd == 1 || kOdd == 3, "head dims 64, 128, 192, 256");
  __device__ static int coordinate(int i, int lane) { return i / kRun * kPower + lane * kRun + i % kRun; }

  // v <- (C_m (x) H_p) v, unnormalised.
  __device__ static void transform(float (&v)[kCount], int lane) {
#pragma unroll
    for (int distance = 1; distance < kRun; distance *= 2) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (i & distance) continue;  // kRun is a power of two, so i counts within the block of p here
        const float a = v[i], b = v[i + distance];
        v[i] = a + b;
        v[i + distance] = a - b;
      }
    }
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float other = __shfl_xor_sync(0xffffffffu, v[i], distance);
        v[i] = (lane & distance) ? other - v[i] : other + v[i];
      }
    }
    if constexpr (kOdd == 3) {
      constexpr float c1 = 0.366025404f, c2 = -1.366025404f;  // rotation_tables.h
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        const float a = v[j], b = v[kRun + j], c = v[2 * kRun + j];
        v[j] = a + b + c;
        v[kRun + j] = a + c1 * b + c2 * c;
        v[2 * kRun + j] = a + c2 * b + c1 * c;
      }
    }
  }
  __device__ static void flip(const uint32_t (&signs)[8], float (&v)[kCount], int lane) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int at = coordinate(i, lane);
      if (signs[at / 32] >> (at % 32) & 1u) v[i] = -v[i];
    }
  }
};

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}

}  // namespace
}  // namespace kvt::cuda

#endif
