// New rows on their way to the exact rows of a tensor: first cells and ring (kvt_cuda_exact_rows). One block settles one stream,
// so that slots are dealt in the order of the rows; rows beyond the capacity are few, so it copies them too.
#ifndef KVT_CUDA_EXACT_STORE_CUH
#define KVT_CUDA_EXACT_STORE_CUH

#include "cuda/element_types.cuh"
#include "cuda/encode_source.cuh"

namespace kvt::cuda {
namespace {

constexpr int kEncodeThreads = 256, kEncodeWarps = kEncodeThreads / 32;
static_assert(kEncodeThreads >= KVT_CUDA_MAX_RING + KVT_MAX_EXACT);

struct ExactScratch {
  int32_t ring_source[KVT_CUDA_MAX_RING];          // the row that goes to a slot, or -1
  int32_t first_source[KVT_MAX_EXACT];             // the row that goes to a first cell, or -1
  int32_t newest[KVT_CUDA_MAX_RING];               // rows of the stream, newest first, as many as the ring holds
  int32_t cells[kEncodeThreads];                   // of the stream's rows at hand, newest first
  int32_t rows[kEncodeThreads];                    // their numbers
  int32_t copies[KVT_CUDA_MAX_RING + KVT_MAX_EXACT];  // place (slot, or capacity + first cell)
  int32_t warp_count[kEncodeWarps];
};

// Ranks the threads of a block for which `counts`, from `before` on; the number of them is added to it.
__device__ __forceinline__ int rank_in_block(bool counts, int32_t (&warp_count)[kEncodeWarps], int* n) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t ours = __ballot_sync(0xffffffffu, counts);
  __syncthreads();  // what was counted before is no longer read
  if (lane == 0) warp_count[warp] = __popc(ours);
  __syncthreads();
  int rank = __popc(ours & ((1u << lane) - 1)), all = 0;
#pragma unroll
  for (int w = 0; w < kEncodeWarps; ++w) {
    if (w < warp) rank += warp_count[w];
    all += warp_count[w];
  }
  *n = all;
  return rank;
}

template <int kDim>
__device__ __forceinline__ void load_bits_of_row(const char* row, kvt_cuda_type type, int lane, uint32_t (&x)[(kDim + 31) / 32]) {
  if (type == KVT_CUDA_F32) {
#pragma unroll
    for (int i = 0; i < (kDim + 31) / 32; ++i) x[i] = 32 * i + lane < kDim ? load_bits(row, KVT_CUDA_F32, 32 * i + lane) : 0;
  } else {
#pragma unroll
    for (int i = 0; i < (kDim + 31) / 32; ++i) x[i] = 32 * i + lane < kDim ? load_bits(row, KVT_CUDA_F16, 32 * i + lane) : 0;
  }
}

// Rows of the batch to their places in every head: a few a warp at a time, so that their latencies overlap.
template <int kDim>
__device__ __forceinline__ void copy_exact_rows(const EncodeCall& call, const ExactScratch& s, uint32_t stream, int n_copies) {
  constexpr int N = (kDim + 31) / 32, kBatch = kDim <= 128 ? 4 : 2;
  const kvt_cuda_exact_rows& exact = call.exact;
  const int lane = threadIdx.x % 32, capacity = static_cast<int>(exact.capacity);
  char* first = reinterpret_cast<char*>(exact.first) + stream * exact.first_stream_stride;
  char* ring = reinterpret_cast<char*>(exact.ring) + stream * exact.ring_stream_stride;
  const uint32_t n_items = static_cast<uint32_t>(n_copies) * call.n_kv_heads;
  for (uint32_t base = threadIdx.x / 32; base < n_items; base += kBatch * kEncodeWarps) {
    uint32_t x[kBatch][N];
    __half* to[kBatch];  // nullptr: nothing to store
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const uint32_t item = base + b * kEncodeWarps;
      to[b] = nullptr;
      if (item >= n_items) continue;
      const int place = s.copies[item / call.n_kv_heads];
      const uint32_t head = item % call.n_kv_heads;
      const bool in_ring = place < capacity;
      const size_t offset = source_offset(call, static_cast<uint32_t>(in_ring ? s.ring_source[place] : s.first_source[place - capacity]), head);
      load_bits_of_row<kDim>(call.src + offset, call.src_type, lane, x[b]);
      if (call.unchanged != nullptr) {
        uint32_t before[N], differs = 0;
        load_bits_of_row<kDim>(call.unchanged + offset, call.src_type, lane, before);
#pragma unroll
        for (int i = 0; i < N; ++i) differs |= x[b][i] ^ before[i];
        if (!__any_sync(0xffffffffu, differs != 0)) continue;
      }
      to[b] = in_ring ? reinterpret_cast<__half*>(ring + head * exact.ring_head_stride) + static_cast<size_t>(place) * kDim
                      : reinterpret_cast<__half*>(first + head * exact.first_head_stride) + static_cast<size_t>(place - capacity) * kDim;
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (to[b] == nullptr) continue;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (32 * i + lane < kDim) to[b][32 * i + lane] = __float2half_rn(element_value(x[b][i], call.src_type));
      }
    }
  }
}

// For a whole block of kEncodeThreads. Ends with a barrier.
template <int kDim>
__device__ __forceinline__ void store_exact_rows(const EncodeCall& call, ExactScratch& s, uint32_t stream) {
  const kvt_cuda_exact_rows& exact = call.exact;
  const int thread = threadIdx.x;
  const int capacity = static_cast<int>(exact.capacity), n_first = static_cast<int>(exact.n_first);
  int32_t* ring_cells = exact.ring_cells + static_cast<size_t>(stream) * capacity;
  const int32_t old_cell = thread < capacity ? ring_cells[thread] : -1;  // of this thread's slot
  const int next = capacity > 0 ? static_cast<int>(exact.ring_next[stream] % exact.capacity) : 0;
  if (thread < capacity) s.ring_source[thread] = -1;
  if (thread < n_first) s.first_source[thread] = -1;
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
    int n_chunk = 0;
    const int rank = rank_in_block(cell >= 0, s.warp_count, &n_chunk);
    if (cell >= 0) {
      s.cells[rank] = cell;
      s.rows[rank] = static_cast<int32_t>(row);
      if (n_new + rank < capacity) s.newest[n_new + rank] = static_cast<int32_t>(row);
      if (cell < n_first) s.first_source[cell] = static_cast<int32_t>(row);
    }
    __syncthreads();
    n_new += n_chunk;
    if (old_cell >= 0) {
#pragma unroll 8
      for (int i = 0; i < n_chunk; ++i) {
        if (s.cells[i] != old_cell) continue;
        is_replaced = true;
        if (call.exact_in_place) s.ring_source[thread] = s.rows[i];
      }
    }
  }
  n_new = min(n_new, capacity);
  if (!call.exact_in_place && thread < capacity) {
    int age = next + n_new - 1 - thread;  // of the slot, 0: the newest
    if (age < 0) age += capacity;
    if (age >= capacity) age -= capacity;
    if (age < n_new) {
      const int32_t row = s.newest[age];
      s.ring_source[thread] = row;
      ring_cells[thread] = static_cast<int32_t>(place_of_row(call, static_cast<uint32_t>(row)).cell);
    } else if (is_replaced) {
      ring_cells[thread] = -1;
    }
    if (thread == 0) exact.ring_next[stream] = static_cast<uint32_t>(next + n_new < capacity ? next + n_new : next + n_new - capacity);
  }
  const bool is_place = thread < capacity + n_first;
  __syncthreads();
  const bool has_copy = is_place && (thread < capacity ? s.ring_source[thread] : s.first_source[thread - capacity]) >= 0;
  int n_copies = 0;
  const int rank = rank_in_block(has_copy, s.warp_count, &n_copies);
  if (has_copy) s.copies[rank] = thread;
  __syncthreads();
  copy_exact_rows<kDim>(call, s, stream, n_copies);
  __syncthreads();
}

}  // namespace
}  // namespace kvt::cuda

#endif
