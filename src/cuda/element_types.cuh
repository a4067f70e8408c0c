// Elements of the caller's rows: fp32, fp16 or bf16.
#ifndef KVT_CUDA_ELEMENT_TYPES_CUH
#define KVT_CUDA_ELEMENT_TYPES_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kvturbo/kvturbo_cuda.h"

namespace kvt::cuda {
namespace {

// An element as it lies in memory, to be converted later: until then a load is not waited for.
__device__ __forceinline__ uint32_t load_bits(const char* row, kvt_cuda_type type, int i) {
  return type == KVT_CUDA_F32 ? reinterpret_cast<const uint32_t*>(row)[i] : reinterpret_cast<const uint16_t*>(row)[i];
}
__device__ __forceinline__ float element_value(uint32_t bits, kvt_cuda_type type) {
  if (type == KVT_CUDA_F16) return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
  return __uint_as_float(type == KVT_CUDA_F32 ? bits : bits << 16);
}

__device__ __forceinline__ float load_element(const char* row, kvt_cuda_type type, int i) {
  if (type == KVT_CUDA_F32) return reinterpret_cast<const float*>(row)[i];
  if (type == KVT_CUDA_F16) return __half2float(reinterpret_cast<const __half*>(row)[i]);
  return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(row)[i]);
}

__device__ __forceinline__ void store_element(char* row, kvt_cuda_type type, int i, float x) {
  if (type == KVT_CUDA_F32) {
    reinterpret_cast<float*>(row)[i] = x;
  } else if (type == KVT_CUDA_F16) {
    reinterpret_cast<__half*>(row)[i] = __float2half_rn(x);
  } else {
    reinterpret_cast<__nv_bfloat16*>(row)[i] = __float2bfloat16_rn(x);
  }
}

}  // namespace
}  // namespace kvt::cuda

#endif
