// Pages for benchmarks: random codes with plausible norms, in a pool that is larger than any cache.
#ifndef KVT_BENCH_CUDA_BENCH_POOL_H
#define KVT_BENCH_CUDA_BENCH_POOL_H

#include <cuda_runtime.h>
#include <kvturbo/kvturbo_cuda.h>

#include <cstdint>

#define KVT_BENCH_CHECK(call) check_cuda(call, #call, __LINE__)

void check_cuda(cudaError_t error, const char* what, int line);  // prints and exits

// Random fp16 values of deviation 1, times scale.
void fill_halves(void* to, size_t n, uint32_t seed, float scale);
// Random codes of n_pages pages; norms in 8 .. 15, residual norms at 0.18 of them. f16: random rows.
void fill_pages(kvt_codec_id codec, kvt_side side, uint32_t head_dim, void* pages, size_t n_pages, uint32_t seed);
// Enqueues a clock reading; after a synchronisation read_clock gives the multiprocessor clock at that time in MHz.
void enqueue_clock(cudaStream_t stream);
double read_clock();

#endif
