#include <cuda_fp16.h>

#include <cstdio>
#include <cstdlib>

#include "cuda_bench_pool.h"

namespace {

__device__ uint32_t mix(uint64_t i, uint32_t seed) {
  uint32_t x = static_cast<uint32_t>(i) * 2654435761u + static_cast<uint32_t>(i >> 32) * 40503u + seed;
  x ^= x >> 15;
  x *= 2246822519u;
  x ^= x >> 13;
  x *= 3266489917u;
  return x ^ x >> 16;
}

__global__ void random_words(uint32_t* to, size_t n, uint32_t seed) {
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    to[i] = mix(i, seed);
  }
}

__global__ void random_halves(__half* to, size_t n, uint32_t seed, float scale) {
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    const uint32_t x = mix(i, seed);  // the sum of four bytes: variance 4 * 65535 / 12
    const float sum = static_cast<float>((x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24)) - 510.0f;
    to[i] = __float2half(sum * (1.0f / 147.8f) * scale);
  }
}

__global__ void set_norms(char* pages, size_t page_bytes, size_t norm_offset, size_t n_pages, float scale, uint32_t seed) {
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n_pages * 64;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    const float n = 8.0f + static_cast<float>(mix(i, seed) & 1023) * (7.0f / 1024);
    reinterpret_cast<__half*>(pages + i / 64 * page_bytes + norm_offset)[i % 64] = __float2half(n * scale);
  }
}

__device__ float g_clock;
__global__ void measure_clock() {
  uint64_t t0, t1;
  asm volatile("mov.u64 %0,%globaltimer;" : "=l"(t0));
  const int64_t c0 = clock64();
  do {
    asm volatile("mov.u64 %0,%globaltimer;" : "=l"(t1));
  } while (t1 - t0 < 100000);
  g_clock = static_cast<float>(clock64() - c0) / static_cast<float>(t1 - t0) * 1000.0f;
}

}  // namespace

void check_cuda(cudaError_t error, const char* what, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "kvturbo_cuda_bench: line %d: %s: %s\n", line, what, cudaGetErrorString(error));
  std::exit(1);
}

void fill_halves(void* to, size_t n, uint32_t seed, float scale) {
  random_halves<<<1024, 256>>>(static_cast<__half*>(to), n, seed, scale);
  KVT_BENCH_CHECK(cudaGetLastError());
}

void fill_pages(kvt_codec_id codec, kvt_side side, uint32_t head_dim, void* pages, size_t n_pages, uint32_t seed) {
  const size_t bytes = kvt_page_bytes_for(codec, side, head_dim);
  if (codec == KVT_CODEC_F16) return fill_halves(pages, bytes / 2 * n_pages, seed, 1.0f);
  random_words<<<1024, 256>>>(static_cast<uint32_t*>(pages), bytes * n_pages / 4, seed);
  const bool residual = codec == KVT_CODEC_HYBRID && side == KVT_KEY;
  set_norms<<<1024, 256>>>(static_cast<char*>(pages), bytes, bytes - (residual ? 256 : 128), n_pages, 1.0f, seed);
  if (residual) set_norms<<<1024, 256>>>(static_cast<char*>(pages), bytes, bytes - 128, n_pages, 0.18f, seed);
  KVT_BENCH_CHECK(cudaGetLastError());
}

void enqueue_clock(cudaStream_t stream) { measure_clock<<<1, 1, 0, stream>>>(); }
double read_clock() {
  float mhz = 0;
  KVT_BENCH_CHECK(cudaMemcpyFromSymbol(&mhz, g_clock, sizeof mhz));
  return static_cast<double>(mhz);
}
