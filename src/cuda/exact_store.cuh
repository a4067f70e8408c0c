// New rows on their way to the exact rows of a tensor: first cells and ring (kvt_cuda_exact_rows). One block settles one stream,
// so that slots are dealt in the order of the rows; rows beyond the capacity are few, so it copies them too.
#ifndef KVT_CUDA_EXACT_STORE_CUH
#define KVT_CUDA_EXACT_STORE_CUH

#include "cuda/element_types.cuh"
#include "cuda/encode_source.cuh"

namespace kvt::cuda {
namespace {

constexpr int kEncodeThreads = 256;

struct ExactScratch {
  int32_t ring_source[KVT_CUDA_MAX_RING];   // the row that goes to a slot, or -1
  int32_t first_source[KVT_MAX_EXACT];      // the row that goes to a first cell, or -1
  int32_t newest[KVT_CUDA_MAX_RING];        // rows of the stream, newest first, as many as the ring holds
  int32_t chunk[kEncodeThreads];            // cells of the rows at hand, -1: of another stream
  int32_t warp_count[kEncodeThreads / 32];  // rows of the stream at hand
};
// A row of the batch is copied to one place of each head by a warp.
__device__ __forceinline__ void copy_exact_row(const EncodeCall& call, uint32_t row, uint32_t head, uint16_t* rows,
                                               uint32_t place, int lane) {
  const char* from = call.src + source_offset(call, row, head);
  if (call.unchanged != nullptr) {
    const char* before = call.unchanged + source_offset(call, row, head);
    bool same = true;
    for (uint32_t i = lane; i < call.head_dim; i += 32) {
      same = same && __float_as_uint(load_element(from, call.src_type, static_cast<int>(i))) ==
                         __float_as_uint(load_element(before, call.src_type, static_cast<int>(i)));
    }
    if (__all_sync(0xffffffffu, same)) return;
  }
  __half* to = reinterpret_cast<__half*>(rows) + static_cast<size_t>(place) * call.head_dim;
  for (uint32_t i = lane; i < call.head_dim; i += 32)
    to[i] = __float2half_rn(load_element(from, call.src_type, static_cast<int>(i)));
}

// For a whole block of kEncodeThreads. Ends with a barrier.
__device__ __forceinline__ void store_exact_rows(const EncodeCall& call, ExactScratch& s, uint32_t stream) {
  const kvt_cuda_exact_rows& exact = call.exact;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int capacity = static_cast<int>(exact.capacity), n_first = static_cast<int>(exact.n_first);
  int32_t* ring_cells = exact.ring_cells + static_cast<size_t>(stream) * capacity;
  const int32_t old_cell = thread < capacity ? ring_cells[thread] : -1;  // of this thread's slot
  if (thread < capacity) s.ring_source[thread] = -1;
  if (thread < n_first) s.first_source[thread] = -1;
  const int next = capacity > 0 ? static_cast<int>(exact.ring_next[stream] % exact.capacity) : 0;
  bool is_replaced = false;  // the row of this thread's slot
  int n_new = 0;             // rows of the stream that enter the ring
  // From the newest row backwards, a chunk at a time.
  for (int64_t end = call.n_rows; end > 0; end -= kEncodeThreads) {
    const int64_t row = end - 1 - thread;
    int32_t cell = -1;
    if (row >= 0) {
      const CellPlace place = place_of_row(call, static_cast<uint32_t>(row));
      if (place.cell >= 0 && place.stream == stream) cell = static_cast<int32_t>(place.cell);
    }
    const uint32_t ours = __ballot_sync(0xffffffffu, cell >= 0);
    __syncthreads();  // the chunk before is no longer read
    s.chunk[thread] = cell;
    if (lane == 0) s.warp_count[warp] = __popc(ours);
    if (cell >= 0 && cell < n_first) s.first_source[cell] = static_cast<int32_t>(row);
    __syncthreads();
    int rank = n_new + __popc(ours & ((1u << lane) - 1)), n_chunk = 0;
    for (int w = 0; w < kEncodeThreads / 32; ++w) {
      if (w < warp) rank += s.warp_count[w];
      n_chunk += s.warp_count[w];
    }
    if (cell >= 0 && rank < capacity) s.newest[rank] = static_cast<int32_t>(row);
    n_new += n_chunk;
    if (old_cell >= 0 && n_chunk > 0) {
      for (int i = 0; i < kEncodeThreads; ++i) {
        if (s.chunk[i] != old_cell) continue;
        is_replaced = true;
        if (call.exact_in_place) s.ring_source[thread] = static_cast<int32_t>(end - 1 - i);
      }
    }
  }
  n_new = min(n_new, capacity);
  __syncthreads();
  if (!call.exact_in_place && thread < capacity) {
    const int age = (next + n_new - 1 - thread + 2 * capacity) % capacity;  // of the slot, 0: the newest
    if (age < n_new) {
      const int32_t row = s.newest[age];
      s.ring_source[thread] = row;
      ring_cells[thread] = static_cast<int32_t>(place_of_row(call, static_cast<uint32_t>(row)).cell);
    } else if (is_replaced) {
      ring_cells[thread] = -1;
    }
    if (thread == 0) exact.ring_next[stream] = static_cast<uint32_t>((next + n_new) % capacity);
  }
  __syncthreads();
  char* first = reinterpret_cast<char*>(exact.first) + stream * exact.first_stream_stride;
  char* ring = reinterpret_cast<char*>(exact.ring) + stream * exact.ring_stream_stride;
  for (int i = warp; i < (capacity + n_first) * static_cast<int>(call.n_kv_heads); i += kEncodeThreads / 32) {
    const int place = i / static_cast<int>(call.n_kv_heads);
    const uint32_t head = static_cast<uint32_t>(i) % call.n_kv_heads;
    const int32_t row = place < capacity ? s.ring_source[place] : s.first_source[place - capacity];
    if (row < 0) continue;
    char* rows = place < capacity ? ring + head * exact.ring_head_stride : first + head * exact.first_head_stride;
    copy_exact_row(call, static_cast<uint32_t>(row), head, reinterpret_cast<uint16_t*>(rows),
                   static_cast<uint32_t>(place < capacity ? place : place - capacity), lane);
  }
  __syncthreads();
}

// Blocks of the grid's last row see to the exact rows. Returns whether this is one of them.
__device__ __forceinline__ bool store_exact_rows_in_last(const EncodeCall& call, void* scratch) {
  if (blockIdx.y < call.n_kv_heads) return false;
  for (uint32_t stream = blockIdx.x; stream < call.exact.n_streams; stream += gridDim.x)
    store_exact_rows(call, *static_cast<ExactScratch*>(scratch), stream);
  return true;
}

}  // namespace
}  // namespace kvt::cuda

#endif
