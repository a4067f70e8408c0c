// All pages of all (stream, head) units form one list, in that order; the blocks take equal consecutive shares of it. Lengths
// lie in device memory, so every block finds its share by itself.
#ifndef KVT_CUDA_WORK_SPLIT_CUH
#define KVT_CUDA_WORK_SPLIT_CUH

#include <climits>

#include "cuda/cuda_attend.h"

namespace kvt::cuda {
namespace {

__device__ __forceinline__ int stream_cells(const kvt_cuda_attention& args, uint32_t stream) {
  if (args.lengths == nullptr) return static_cast<int>(args.max_cells);
  return max(0, min(args.lengths[stream], static_cast<int>(args.max_cells)));
}
__device__ __forceinline__ int pages_of_cells(int cells) {
  return static_cast<int>((static_cast<uint32_t>(cells) + kPageTokens - 1) / kPageTokens);
}

// Pages of one head in the streams before `stream`, and in all streams. For a whole warp; the same in all lanes.
struct PageCount {
  int before, all;
};
__device__ __forceinline__ PageCount count_pages(const kvt_cuda_attention& args, uint32_t stream) {
  if (args.lengths == nullptr) {
    const int pages = pages_of_cells(static_cast<int>(args.max_cells));
    return {static_cast<int>(stream) * pages, static_cast<int>(args.n_streams) * pages};
  }
  PageCount count{0, 0};
  for (uint32_t s = threadIdx.x % 32; s < args.n_streams; s += 32) {
    const int pages = pages_of_cells(stream_cells(args, s));
    count.all += pages;
    if (s < stream) count.before += pages;
  }
  count.all = __reduce_add_sync(0xffffffffu, count.all);
  count.before = __reduce_add_sync(0xffffffffu, count.before);
  return count;
}

// A place in the list.
struct PageCursor {
  uint32_t stream, head;
  int page, n_pages;  // of the stream

  __device__ __forceinline__ void advance(const kvt_cuda_attention& args, int n) {
    page += n;
    while (page >= n_pages) {
      page -= n_pages;
      if (++head == args.n_kv_heads) {
        head = 0;
        ++stream;
        n_pages = stream < args.n_streams ? pages_of_cells(stream_cells(args, stream)) : INT_MAX;
      }
    }
  }
};

// For a whole warp; the same in all lanes. index: below the length of the list.
__device__ __forceinline__ PageCursor find_page(const kvt_cuda_attention& args, int index) {
  if (args.lengths == nullptr) {
    const int pages = pages_of_cells(static_cast<int>(args.max_cells)), unit = index / pages;
    return {unit / args.n_kv_heads, unit % args.n_kv_heads, index % pages, pages};
  }
  int before = 0;
  for (uint32_t base = 0;; base += 32) {
    const uint32_t s = base + threadIdx.x % 32;
    const int pages = s < args.n_streams ? pages_of_cells(stream_cells(args, s)) : 0;
    int end = pages * static_cast<int>(args.n_kv_heads);  // scan: where the stream ends
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, end, distance);
      if (threadIdx.x % 32 >= distance) end += below;
    }
    end += before;
    const uint32_t beyond = __ballot_sync(0xffffffffu, index < end);
    if (beyond != 0) {
      const int lane = __ffs(beyond) - 1;
      const int n_pages = __shfl_sync(0xffffffffu, pages, lane), stream_end = __shfl_sync(0xffffffffu, end, lane);
      const int within = index - (stream_end - n_pages * static_cast<int>(args.n_kv_heads));
      return {base + lane, static_cast<uint32_t>(within / n_pages), within % n_pages, n_pages};
    }
    before = __shfl_sync(0xffffffffu, end, 31);
  }
}

// Block x of n takes the pages x * all / n .. (x + 1) * all / n - 1. (Equal parts with the longer ones first would need no
// 64-bit division, but made the fp16 kernel 9 % slower, measured.)
struct PageSplit {
  uint32_t n_blocks;  // with work: never more than pages
  uint32_t all;

  __device__ __forceinline__ PageSplit(uint32_t blocks, int pages)
      : n_blocks(min(blocks, static_cast<uint32_t>(pages))), all(static_cast<uint32_t>(pages)) {}
  __device__ __forceinline__ int first_of(uint32_t block) const {
    return static_cast<int>(static_cast<uint64_t>(block) * all / n_blocks);
  }
  __device__ __forceinline__ uint32_t block_of(int page) const {
    return static_cast<uint32_t>(((static_cast<uint64_t>(page) + 1) * n_blocks - 1) / all);
  }
};

}  // namespace
}  // namespace kvt::cuda

#endif
