// A row in half a warp, as the encoders hold it: lane l (0..15) has the coordinates l, 16 + l, 32 + l, ... in x[0], x[1], ...
// So the 16 partial sums of format.md section 5 are the lanes, and a butterfly is a shuffle below distance 16 and a pair of
// registers above. Every fp32 operation is the reference's own, in its order: these files are compiled with --fmad=false.
#ifndef KVT_CUDA_ENCODE_ROW_CUH
#define KVT_CUDA_ENCODE_ROW_CUH

#include "cuda/cuda_encode.h"
#include "cuda/element_types.cuh"

namespace kvt::cuda {
namespace {

constexpr unsigned kFullWarp = 0xffffffffu;

template <int N>
__device__ __forceinline__ void load_row(const char* src, kvt_cuda_type type, int lane, float (&x)[N]) {
  if (type == KVT_CUDA_F16) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = load_element(src, KVT_CUDA_F16, 16 * i + lane);
  } else if (type == KVT_CUDA_BF16) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = load_element(src, KVT_CUDA_BF16, 16 * i + lane);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = load_element(src, KVT_CUDA_F32, 16 * i + lane);
  }
}

// The sum over all coordinates, in every lane.
template <int N>
__device__ __forceinline__ float ordered_dot(const float (&a)[N], const float (&b)[N]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += a[i] * b[i];
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) sum += __shfl_xor_sync(kFullWarp, sum, distance);
  return sum;
}

__device__ __forceinline__ float hartley_entry(int m, int k) {  // rotation_tables.h
  constexpr float k3[3] = {1.0f, 0.366025404f, -1.366025404f};
  constexpr float k5[5] = {1.0f, 1.260073511f, -0.221231742f, -1.396802247f, -0.642039522f};
  constexpr float k7[7] = {1.0f, 1.405321284f, 0.752406978f, -0.467085129f, -1.334852607f, -1.197448846f, -0.158341681f};
  return m == 3 ? k3[k] : m == 5 ? k5[k] : k7[k];
}

// signs: bit i flips x[i].
template <int N>
__device__ __forceinline__ void flip_row(uint32_t signs, float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = __uint_as_float(__float_as_uint(x[i]) ^ (signs >> i << 31));
}

// x <- (C_m (x) H_p) x, unnormalised; symmetric.
template <int N>
__device__ __forceinline__ void transform_row(int lane, float (&x)[N]) {
  constexpr int kDim = 16 * N, kPower = kDim & -kDim, kOdd = kDim / kPower, kRun = kPower / 16;
#pragma unroll
  for (int distance = 1; distance < 16; distance *= 2) {
    const float sign = (lane & distance) ? -1.0f : 1.0f;  // the upper of two lanes takes a - b; the product is exact
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float other = __shfl_xor_sync(kFullWarp, x[i], distance);
      x[i] = __fmaf_rn(x[i], sign, other);
    }
  }
#pragma unroll
  for (int distance = 1; distance < kRun; distance *= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i & distance) continue;
      const float a = x[i], b = x[i + distance];
      x[i] = a + b;
      x[i + distance] = a - b;
    }
  }
  if constexpr (kOdd > 1) {
#pragma unroll
    for (int b = 0; b < kRun; ++b) {
      float column[kOdd];
#pragma unroll
      for (int a = 0; a < kOdd; ++a) column[a] = x[a * kRun + b];
#pragma unroll
      for (int a = 0; a < kOdd; ++a) {
        float sum = column[0];
#pragma unroll
        for (int k = 1; k < kOdd; ++k) sum += hartley_entry(kOdd, a * k % kOdd) * column[k];
        x[a * kRun + b] = sum;
      }
    }
  }
}

template <int N>
__device__ __forceinline__ void rotate_forward(uint32_t signs, int lane, float (&x)[N]) {
  flip_row(signs, x);
  transform_row(lane, x);
}

__device__ __forceinline__ uint16_t stored_norm(float n) {
  return __half_as_ushort(__float2half_rn(n < 65504.0f ? n : 65504.0f));
}
constexpr uint16_t kNanNorm = 0x7e00;

}  // namespace
}  // namespace kvt::cuda

#endif
