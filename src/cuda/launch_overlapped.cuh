// Programmatic dependent launch (compute capability 9.0): a kernel's launch and prologue overlap the end of the one before it.
// Each of our kernels waits for its predecessor's memory before it touches any, so nothing is asked of the caller.
#ifndef KVT_CUDA_LAUNCH_OVERLAPPED_CUH
#define KVT_CUDA_LAUNCH_OVERLAPPED_CUH

#include <cuda_runtime.h>

namespace kvt::cuda {
namespace {

__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void allow_successor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

template <class Kernel, class Call>
void launch_overlapped(Kernel kernel, dim3 grid, unsigned threads, unsigned shared_bytes, cudaStream_t stream, bool overlap,
                       const Call& call) {
  if (shared_bytes > 48 * 1024)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, call);
}

}  // namespace
}  // namespace kvt::cuda

#endif
