// What a step needs to know of its mask (kvt_cuda_step_args, step_layout.h), in one launch: each block finds the exact cells of
// every query of a stream anew, which is little work, and then looks at its pages.
#include <cuda_fp16.h>

#include "cuda/cuda_step.h"

namespace kvt::cuda {
namespace {

constexpr uint16_t kMinusInfinity = 0xfc00;
constexpr int kWarps = 8, kBlockPages = 64;
static_assert(kWarps >= KVT_CUDA_MAX_QUERIES);

struct PrepareCall {
  kvt_cuda_step_args args;
  StepShape shape;
  char* step;
};

__device__ __forceinline__ float half_value(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// A query's view of a stream's cells.
struct QueryMask {
  const uint16_t* row;  // nullptr: everything is seen
  int n_cells;

  __device__ QueryMask(const kvt_cuda_step_args& a, uint32_t stream, uint32_t query) : n_cells(static_cast<int>(a.n_cells)) {
    row = a.mask == nullptr ? nullptr
                            : reinterpret_cast<const uint16_t*>(reinterpret_cast<const char*>(a.mask) +
                                                                stream * a.mask_stream_stride + query * a.mask_query_stride);
  }
  __device__ uint16_t at(int cell) const {
    if (cell < 0 || cell >= n_cells) return kMinusInfinity;
    return row == nullptr ? uint16_t{0} : row[cell];
  }
};

// The exact cells of a query, by one warp: the ring's in `cells`, all of them in the step's list if there is one to write.
// Returns the number in `cells`.
__device__ int list_exact(const PrepareCall& call, const QueryMask& mask, uint32_t stream, int32_t* cells, ExactEntry* entries) {
  const kvt_cuda_step_args& a = call.args;
  const int lane = threadIdx.x % 32, capacity = static_cast<int>(a.capacity), window = static_cast<int>(a.window),
            n_first = static_cast<int>(a.n_first);
  int n_listed = 0;
  for (int base = 0; entries != nullptr && base < n_first; base += 32) {
    const int cell = base + lane;
    const uint16_t m = cell < n_first ? mask.at(cell) : kMinusInfinity;
    const uint32_t seen = __ballot_sync(0xffffffffu, m != kMinusInfinity);
    if (m != kMinusInfinity) entries[n_listed + __popc(seen & ((1u << lane) - 1))] = {cell, half_value(m)};
    n_listed += __popc(seen);
  }
  int n_recent = 0;
  const int next = capacity > 0 ? static_cast<int>(a.ring_next[stream] % a.capacity) : 0;
  for (int base = 0; base < capacity && n_recent < window; base += 32) {  // from the newest backwards
    const int age = base + lane, slot = (next - 1 - age + 2 * capacity) % capacity;
    const int cell = age < capacity ? a.ring_cells[static_cast<size_t>(stream) * a.capacity + slot] : -1;
    const uint16_t m = cell >= n_first ? mask.at(cell) : kMinusInfinity;
    const uint32_t seen = __ballot_sync(0xffffffffu, m != kMinusInfinity);
    const int rank = n_recent + __popc(seen & ((1u << lane) - 1));
    if (m != kMinusInfinity && rank < window) {
      cells[rank] = cell;
      if (entries != nullptr) entries[n_listed + rank] = {n_first + slot, half_value(m)};
    }
    n_recent = min(n_recent + __popc(seen), window);
  }
  for (int i = n_listed + n_recent + lane; entries != nullptr && i < static_cast<int>(call.shape.n_listed); i += 32)
    entries[i] = {0, -INFINITY};
  return n_recent;
}

__global__ void __launch_bounds__(32 * kWarps) prepare_kernel(const __grid_constant__ PrepareCall call) {
  __shared__ int32_t exact_cells[KVT_CUDA_MAX_QUERIES][KVT_MAX_RECENT];
  __shared__ int n_exact[KVT_CUDA_MAX_QUERIES];
  const kvt_cuda_step_args& a = call.args;
  const StepShape& shape = call.shape;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_queries = static_cast<int>(a.n_queries);
  const uint32_t stream = blockIdx.y;
  if (warp < n_queries) {
    const size_t query = static_cast<size_t>(stream) * n_queries + warp;
    auto* entries = reinterpret_cast<ExactEntry*>(call.step + shape.entries_offset());
    const int n = list_exact(call, QueryMask(a, stream, warp), stream, exact_cells[warp],
                             blockIdx.x == 0 ? entries + query * shape.n_listed : nullptr);
    if (lane == 0) n_exact[warp] = n;
  }
  __syncthreads();
  const int n_pages = static_cast<int>(shape.n_pages()), end = min(n_pages, static_cast<int>(blockIdx.x + 1) * kBlockPages);
  auto* pages = reinterpret_cast<uint16_t*>(call.step + StepShape::pages_offset());
  for (int page = static_cast<int>(blockIdx.x) * kBlockPages + warp; page < end; page += kWarps) {
    const int cell = 64 * page + 2 * lane;  // and the next
    uint32_t seen = 0, whole = 0, values[KVT_CUDA_MAX_QUERIES];
#pragma unroll
    for (int j = 0; j < KVT_CUDA_MAX_QUERIES; ++j) {
      if (j >= n_queries) break;
      uint32_t exact[2] = {0, 0};
      for (int i = lane; i < n_exact[j]; i += 32) {
        const int at = exact_cells[j][i] - 64 * page;
        if (at >= 0 && at < 64) exact[at / 32] |= 1u << (at % 32);
      }
      const uint32_t low = __reduce_or_sync(0xffffffffu, exact[0]), high = __reduce_or_sync(0xffffffffu, exact[1]);
      const uint32_t ours = (lane < 16 ? low : high) >> (2 * lane % 32);
      const QueryMask mask(a, stream, j);
      uint32_t m[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const bool is_exact = (ours >> k & 1u) || cell + k < static_cast<int>(a.n_first);
        m[k] = is_exact ? kMinusInfinity : mask.at(cell + k);
      }
      values[j] = m[0] | m[1] << 16;
      if (__any_sync(0xffffffffu, m[0] != kMinusInfinity || m[1] != kMinusInfinity)) seen |= 1u << j;
      if (__all_sync(0xffffffffu, (values[j] & 0x7fff7fffu) == 0)) whole |= 1u << j;
    }
    if (lane == 0) pages[static_cast<size_t>(stream) * n_pages + page] = static_cast<uint16_t>(seen | whole << 8);
    if (seen == whole) continue;
    auto* code_mask = reinterpret_cast<uint32_t*>(call.step + shape.mask_offset());
#pragma unroll
    for (int j = 0; j < KVT_CUDA_MAX_QUERIES; ++j) {
      if (j < n_queries) code_mask[((static_cast<size_t>(stream) * n_queries + j) * n_pages + page) * 32 + lane] = values[j];
    }
  }
}

}  // namespace

void launch_prepare_step(const kvt_cuda_step_args& args, void* step, cudaStream_t stream) {
  const PrepareCall call{args, step_shape(args), static_cast<char*>(step)};
  const uint32_t n_blocks = (call.shape.n_pages() + kBlockPages - 1) / kBlockPages;
  prepare_kernel<<<dim3(n_blocks > 0 ? n_blocks : 1, args.n_streams), 32 * kWarps, 0, stream>>>(call);
}

}  // namespace kvt::cuda
