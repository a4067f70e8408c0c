// Cells -> rows (format.md section 2), for prefill and for operations that work on rows. A block decodes a page of one head from
// shared memory; a row lies in half a warp as in encode_row.cuh.
#include "cuda/cuda_step.h"
#include "cuda/encode_row.cuh"
#include "cuda/head_dims.cuh"
#include "format/trellis.h"

namespace kvt::cuda {
namespace {

constexpr int kDecodeThreads = 256;

// Level indices of the coordinates 16 i + lane of a token.
template <int kDim, bool kTrellis>
struct KeyIndices {
  static constexpr int N = kDim / 16, kTileBytes = 8 * kDim;

  // Trellis: the word `steps` earlier in the chain of line u (format.md 4.4).
  __device__ static __forceinline__ uint32_t earlier(const char* words, int u, int steps) {
    const int n_lines = (kDim / 8 - u % 4 + 3) / 4 * 4;
    int at = u - 4 * steps, wraps = 0;
    while (at < 0) {
      at += n_lines;
      ++wraps;
    }
    const uint32_t w = *reinterpret_cast<const uint32_t*>(words + at * 64);
    return __funnelshift_l(w, w, 4 * wraps);
  }
  // signs: bit i: the sketch's sign of coordinate i (hybrid).
  __device__ static __forceinline__ void get(const char* page, int token, int lane, uint32_t mask, int (&index)[N],
                                             uint32_t& signs) {
    const char* words = page + token / 16 * kTileBytes + token % 16 * 4;
    const int shift = lane % 4 * 8 + lane % 8 / 4 * 4;
    uint32_t w[N];
#pragma unroll
    for (int i = 0; i < N; ++i) w[i] = *reinterpret_cast<const uint32_t*>(words + (2 * i + lane / 8) * 64);
    signs = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const uint32_t code = w[i] >> shift;
      if constexpr (kTrellis) {
        uint32_t before[3];
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          if constexpr (kDim % 32 == 0) {  // the line is in a register of this lane
            const int at = i - 2 * (k + 1), wraps = at >= 0 ? 0 : (-at + N - 1) / N;
            before[k] = __funnelshift_l(w[at + wraps * N], w[at + wraps * N], 4 * wraps);
          } else {
            before[k] = earlier(words, 2 * i + lane / 8, k + 1);
          }
        }
        const uint32_t z1 = (w[i] ^ before[0] ^ before[2]) >> shift >> 3 & 1u, z0 = before[1] >> shift >> 3 & 1u;
        index[i] = static_cast<int>((code & 7u) << 2 | z1 << 1 | z0);
      } else {
        index[i] = static_cast<int>(code & mask);
        signs |= (code >> 3 & 1u) << i;
      }
    }
  }
};

template <int kDim, bool kTrellis>
struct ValueIndices {
  static constexpr int N = kDim / 16, kBlocks = kDim / 64, kRest = kDim % 64 / 16, kGroupBytes = (3 * kBlocks + kRest) * 256;

  __device__ static __forceinline__ void get(const char* page, int token, int lane, int (&index)[N]) {
    const char* at = page + token / 32 * kGroupBytes + token % 16 / 4 * 64 + 4 * lane + token % 4;
    const int shift = token % 32 / 16 * 4;
    uint32_t code[N];
#pragma unroll
    for (int h = 0; h < kBlocks; ++h) {
      uint32_t fourth = 0;
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        const uint32_t nibble = static_cast<uint8_t>(at[(k * kBlocks + h) * 256]) >> shift;
        code[4 * h + k] = nibble & 7u;
        fourth |= (nibble >> 3 & 1u) << k;
      }
      code[4 * h + 3] = fourth;
    }
#pragma unroll
    for (int j = 0; j < kRest; ++j)
      code[4 * kBlocks + j] = static_cast<uint8_t>(at[(3 * kBlocks + j) * 256]) >> shift & 7u;
    if constexpr (!kTrellis) {
#pragma unroll
      for (int i = 0; i < N; ++i) index[i] = static_cast<int>(code[i]);
    } else {
      // The trellis bits of a chain as a string: four lanes have them.
      constexpr int kLength = kDim / 4;
      constexpr uint64_t kAll = kLength == 64 ? ~uint64_t{0} : (uint64_t{1} << kLength) - 1;
      const auto element = [&](int i) {
        return i < 4 * kBlocks ? i / 4 * 16 + lane % 4 * 4 + i % 4 : 16 * kBlocks + lane % 4 * kRest + (i - 4 * kBlocks);
      };
      uint64_t bits = 0;
#pragma unroll
      for (int i = 0; i < N; ++i) bits |= uint64_t{code[i] >> 2} << element(i);
      bits |= __shfl_xor_sync(kFullWarp, bits, 1);
      bits |= __shfl_xor_sync(kFullWarp, bits, 2);
      const auto earlier = [&](int steps) { return (bits << steps | bits >> (kLength - steps)) & kAll; };
      const uint64_t z1 = bits ^ earlier(1) ^ earlier(3), z0 = earlier(2);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int e = element(i);
        index[i] = static_cast<int>((code[i] & 3u) << 2 | (z1 >> e & 1u) << 1 | (z0 >> e & 1u));
      }
    }
  }
};

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

enum class Coding { kHalves, kScalar, kSketch, kTrellis };

template <int kDim, bool kKey>
constexpr int kMaxPageBytes = kKey ? 32 * kDim + 256 : (3 * (kDim / 64) + kDim % 64 / 16) * 512 + 128;

template <int kDim, bool kKey, Coding kCoding>
__global__ void __launch_bounds__(kDecodeThreads) decode_kernel(const __grid_constant__ DecodeCall call) {
  constexpr int N = kDim / 16;
  constexpr bool kHalves = kCoding == Coding::kHalves;
  __shared__ __align__(16) char page[kHalves ? 16 : kMaxPageBytes<kDim, kKey>];
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
    const int n = static_cast<int>(kKey && kCoding == Coding::kSketch ? call.residual_offset : call.norm_offset) + 128;
    for (int i = threadIdx.x; i < n / 16; i += kDecodeThreads)
      reinterpret_cast<uint4*>(page)[i] = reinterpret_cast<const uint4*>(from)[i];
    if (threadIdx.x < 32) value[threadIdx.x] = call.value[threadIdx.x];
    if (call.exact.capacity > 0) find_exact(call, stream, page_number, slot_of, is_live);
    __syncthreads();
  }
  const int lane = threadIdx.x % 16;
  const float* mean = nullptr;
  const float* scale = nullptr;
  if (a.key_mean != nullptr) {
    mean = reinterpret_cast<const float*>(reinterpret_cast<const char*>(a.key_mean) + head * a.key_conditioning_head_stride);
    scale = reinterpret_cast<const float*>(reinterpret_cast<const char*>(a.key_scale) + head * a.key_conditioning_head_stride);
  }
  for (int token = threadIdx.x / 16; token < static_cast<int>(kPageTokens); token += kDecodeThreads / 16) {
    const int64_t cell = page_number * kPageTokens + token;
    const bool is_wanted = cell >= first_cell && cell < end_cell;
    if (!__any_sync(kFullWarp, is_wanted)) continue;
    float x[N];
    if constexpr (kHalves) {
      if (is_wanted) load_row(from + static_cast<size_t>(token) * kDim * 2, KVT_CUDA_F16, lane, x);
    } else {
      int index[N];
      uint32_t signs = 0;
      if constexpr (kKey) {
        KeyIndices<kDim, kCoding == Coding::kTrellis>::get(page, token, lane, kCoding == Coding::kSketch ? 7u : 15u, index, signs);
      } else {
        ValueIndices<kDim, kCoding == Coding::kTrellis>::get(page, token, lane, index);
      }
      constexpr float kInverseDim = 1.0f / kDim;
      const float norm = __half2float(reinterpret_cast<const __half*>(page + call.norm_offset)[token]) * kInverseDim;
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = norm * value[index[i]];
      if constexpr (kCoding == Coding::kSketch) {
        constexpr float kRootHalfPi = 1.2533141f;
        const float residual =
            __half2float(reinterpret_cast<const __half*>(page + call.residual_offset)[token]) * (kRootHalfPi * kInverseDim);
        const float unit = residual * (1.0f / sqrtf(static_cast<float>(kDim)));
        float sketch[N];
#pragma unroll
        for (int i = 0; i < N; ++i) sketch[i] = signs >> i & 1u ? -1.0f : 1.0f;
        transform_row(lane, sketch);
        flip_row(call.signs[1][lane], sketch);
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] = fmaf(unit, sketch[i], x[i]);
      }
      transform_row(lane, x);
      flip_row(call.signs[0][lane], x);
      if (mean != nullptr) {
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] = fmaf(x[i], scale[16 * i + lane], mean[16 * i + lane]);
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

void launch_decode(const SideLayout& layout, const kvt_cuda_decode_args& args, cudaStream_t stream) {
  DecodeCall call{};
  call.args = args;
  if (args.exact != nullptr) call.exact = *args.exact;
  const EncodeCall same = make_encode_call(layout);
  call.norm_offset = same.norm_offset;
  call.residual_offset = same.residual_offset;
  for (int i = 0; i < 32; ++i) call.value[i] = same.tables.value[i];
  for (int i = 0; i < 32; ++i) call.signs[i / 16][i % 16] = same.tables.signs[i / 16][i % 16];
  for_head_dim(args.head_dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    switch (args.codec) {
      case KVT_CODEC_F16:
        return launch_side<kDim, Coding::kHalves, Coding::kHalves>(call, stream);
      case KVT_CODEC_HYBRID:
        return launch_side<kDim, Coding::kSketch, Coding::kScalar>(call, stream);
      case KVT_CODEC_SCALAR43:
        return launch_side<kDim, Coding::kScalar, Coding::kScalar>(call, stream);
      default:
        return launch_side<kDim, Coding::kTrellis, Coding::kTrellis>(call, stream);
    }
  });
}

}  // namespace kvt::cuda
