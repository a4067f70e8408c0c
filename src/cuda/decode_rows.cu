// Cells -> rows (format.md section 2), for prefill and for operations that work on rows. A block decodes a page of one head from
// shared memory; a row lies in half a warp as in encode_row.cuh.
#include "cuda/decode_page.cuh"
#include "cuda/head_dims.cuh"

namespace kvt::cuda {
namespace {

// Which of the page's cells have exact rows: slot of the ring, or -1. (First rows are told by their numbers.)
__device__ void find_exact(const DecodeCall& call, uint32_t stream, int64_t page, int16_t (&slot_of)[kPageTokens],
                           uint8_t (&is_live)[KVT_CUDA_MAX_RING]) {
  const int thread = threadIdx.x, capacity = static_cast<int>(call.exact.capacity);
  if (thread < static_cast<int>(kPageTokens)) slot_of[thread] = -1;
  int64_t cell = -1;
  int age = 0;
  if (thread < capacity) {
    cell = call.exact.ring_cells[static_cast<size_t>(stream) * capacity + thread];
    const int next = static_cast<int>(call.exact.ring_next[stream] % call.exact.capacity);
    age = (next - 1 - thread + 2 * capacity) % capacity;
    is_live[age] = cell >= 0;
  }
  __syncthreads();
  if (cell >= 0 && cell / kPageTokens == page) {
    uint32_t n_newer = 0;
    for (int a = 0; a < age; ++a) n_newer += is_live[a];
    if (n_newer < call.args.recent_window) slot_of[cell % kPageTokens] = static_cast<int16_t>(thread);
  }
}

template <int kDim, bool kKey, Coding kCoding>
__global__ void __launch_bounds__(kDecodeThreads) decode_kernel(const __grid_constant__ DecodeCall call) {
  constexpr int N = kDim / 16;
  constexpr bool kHalves = kCoding == Coding::kHalves;
  __shared__ __align__(16) char page[kHalves ? 16 : kMaxPageBytes<kDim, kKey, kCoding>];
  __shared__ float value[32];
  __shared__ int16_t slot_of[kPageTokens];
  __shared__ uint8_t is_live[KVT_CUDA_MAX_RING];
  const kvt_cuda_decode_args& a = call.args;
  const uint32_t head = blockIdx.y, stream = blockIdx.z;
  const int64_t first_cell = a.first_cell, end_cell = first_cell + a.n_cells,
                page_number = first_cell / kPageTokens + blockIdx.x;
  const char* from = static_cast<const char*>(a.pages) + stream * a.stream_stride + head * a.head_stride +
                     static_cast<size_t>(page_number) * a.page_stride;
  if constexpr (!kHalves) {
    load_page<kKey, kCoding>(call.tables, from, page, value);
    if (call.exact.capacity > 0) find_exact(call, stream, page_number, slot_of, is_live);
    __syncthreads();
  }
  const int lane = threadIdx.x % 16;
  const int8_t* mean = nullptr;  // the page's: a run has whole pages
  const float* scale = nullptr;
  float unit = 0;
  if (call.means.codes != nullptr) {
    const int run = call.means.run_of(static_cast<int>(page_number * kPageTokens));
    mean = call.means.codes_of(stream, head, run, kDim);
    unit = call.means.unit_of(stream, head, run);
    scale = reinterpret_cast<const float*>(reinterpret_cast<const char*>(a.key_scale) + head * a.key_scale_head_stride);
  }
  for (int token = threadIdx.x / 16; token < static_cast<int>(kPageTokens); token += kDecodeThreads / 16) {
    const int64_t cell = page_number * kPageTokens + token;
    const bool is_wanted = cell >= first_cell && cell < end_cell;
    if (!__any_sync(kFullWarp, is_wanted)) continue;
    float x[N];
    if constexpr (kHalves) {
      if (is_wanted) load_row(from + static_cast<size_t>(token) * kDim * 2, KVT_CUDA_F16, lane, x);
    } else {
      decode_token<kDim, kKey, kCoding>(call.tables, page, value, token, lane, x);
      if (mean != nullptr) {
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] = fmaf(x[i], scale[16 * i + lane], unit * static_cast<float>(mean[16 * i + lane]));
      }
      const char* exact = nullptr;
      if (cell < call.exact.n_first) {
        exact = reinterpret_cast<const char*>(call.exact.first) + stream * call.exact.first_stream_stride +
                head * call.exact.first_head_stride + static_cast<size_t>(cell) * kDim * 2;
      } else if (call.exact.capacity > 0 && slot_of[token] >= 0) {
        exact = reinterpret_cast<const char*>(call.exact.ring) + stream * call.exact.ring_stream_stride +
                head * call.exact.ring_head_stride + static_cast<size_t>(slot_of[token]) * kDim * 2;
      }
      if (exact != nullptr && is_wanted) load_row(exact, KVT_CUDA_F16, lane, x);
    }
    if (!is_wanted) continue;
    char* dst = static_cast<char*>(a.dst) + stream * a.dst_stream_stride +
                static_cast<size_t>(cell - first_cell) * a.dst_row_stride + head * a.dst_head_stride;
#pragma unroll
    for (int i = 0; i < N; ++i) store_element(dst, a.dst_type, 16 * i + lane, x[i]);
  }
}

template <int kDim, bool kKey, Coding kCoding>
void launch(const DecodeCall& call, cudaStream_t stream) {
  const kvt_cuda_decode_args& a = call.args;
  const uint32_t n_pages = (a.first_cell % kPageTokens + a.n_cells + kPageTokens - 1) / kPageTokens;
  decode_kernel<kDim, kKey, kCoding><<<dim3(n_pages, a.n_kv_heads, a.n_streams), kDecodeThreads, 0, stream>>>(call);
}

template <int kDim, Coding kKeyCoding, Coding kValueCoding>
void launch_side(const DecodeCall& call, cudaStream_t stream) {
  call.args.side == KVT_KEY ? launch<kDim, true, kKeyCoding>(call, stream) : launch<kDim, false, kValueCoding>(call, stream);
}

}  // namespace

CodeTables make_code_tables(const SideLayout& layout) {
  const EncodeCall same = make_encode_call(layout);
  CodeTables tables{};
  tables.norm_offset = same.norm_offset;
  tables.residual_offset = same.residual_offset;
  tables.code_bits = same.tables.code_bits;
  for (int i = 0; i < 32; ++i) tables.value[i] = same.tables.value[i];
  for (int i = 0; i < 32; ++i) tables.signs[i / 16][i % 16] = same.tables.signs[i / 16][i % 16];
  return tables;
}

void launch_decode(const SideLayout& layout, const kvt_cuda_decode_args& args, cudaStream_t stream) {
  DecodeCall call{};
  call.args = args;
  if (args.exact != nullptr) call.exact = *args.exact;
  call.tables = make_code_tables(layout);
  call.means = make_key_means(args);
  for_head_dim(args.head_dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    switch (args.codec) {
      case KVT_CODEC_F16:
        return launch_side<kDim, Coding::kHalves, Coding::kHalves>(call, stream);
      case KVT_CODEC_HYBRID:
        return launch_side<kDim, Coding::kSketch, Coding::kScalar>(call, stream);
      case KVT_CODEC_SCALAR43:
        return launch_side<kDim, Coding::kScalar, Coding::kScalar>(call, stream);
      case KVT_CODEC_K8V4:
      case KVT_CODEC_K8V3:
        return launch_side<kDim, Coding::kScalar, Coding::kTrellis>(call, stream);
      default:
        return launch_side<kDim, Coding::kTrellis, Coding::kTrellis>(call, stream);
    }
  });
}

}  // namespace kvt::cuda
