// Decode attention on code pages (docs/design.md, CUDA). A page is read once, by one warp, or by several if there are more
// query rows than a warp holds; codes become operand bytes in registers, scores and value sums are int8 products, and the
// softmax is online for each warp.
#ifndef KVT_CUDA_ATTEND_CODES_CUH
#define KVT_CUDA_ATTEND_CODES_CUH

#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/launch_overlapped.cuh"
#include "cuda/mean_scores.cuh"
#include "cuda/query_operands.cuh"
#include "cuda/row_visibility.cuh"
#include "cuda/work_split.cuh"

namespace kvt::cuda {
namespace {

// Scores of a page in units of the row's factor. Lane (r, c) gets, of row r, the tokens 16 tile + 4c + j in score[][4 tile +
// j].
template <class Codes, class Shape>
__device__ __forceinline__ void score_page(const QueryOperands<Codes, Shape>& q, const uint32_t (&table)[Codes::kKeyTable],
                                           const char* page, int r, int c, float (&score)[Shape::kRowBlocks][16]) {
  constexpr int kTileBytes = Shape::kTileBytes, N = 2 * Shape::kRowBlocks, kWords = Shape::kLines * (Codes::kKeyBits == 8 ? 2 : 1);
#pragma unroll
  for (int g = 0; g < 2; ++g) {
    int sums[4][N], sketch[4][N];
    uint32_t words[4][kWords];  // tokens 2r, 2r + 1 of tile 2g, then of tile 2g + 1
#pragma unroll
    for (int i = 0; i < Shape::kLines; ++i) {
      const char* tile = page + 2 * g * kTileBytes + r * 8;
      load_keys<Codes::kKeyBits>(tile, i, c, words[0], words[1]);
      load_keys<Codes::kKeyBits>(tile + kTileBytes, i, c, words[2], words[3]);
    }
#pragma unroll
    for (int t = 0; t < 4; ++t) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        sums[t][j] = q.level_start[j];
        sketch[t][j] = Codes::kSketch ? q.sign_start[j] : 0;
      }
    }
#pragma unroll
    for (int i = 0; i < Shape::kLines; ++i) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        uint32_t b0, b1;
        Codes::keys(words[t], i, table, b0, b1);
        Codes::score(sums[t], q.level[i], b0, b1, sums[t]);
        if constexpr (Codes::kSketch) {
          // The bytes of a sign bit are 0 or -128: sum q (-128 bit) + 64 sum q = 64 sum q s.
          const uint32_t low = (words[t][i] << 4) & 0x80808080u, high = words[t][i] & 0x80808080u;
          mma_s8_s8(sketch[t], q.sign[i], low, high, sketch[t]);
        }
      }
    }
    const char* norms = page + 4 * kTileBytes;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int at = ((2 * g + tile) * 16 + 4 * c) * 2;
      const uint2 n = *reinterpret_cast<const uint2*>(norms + at);
      uint2 residual{};
      if constexpr (Codes::kSketch) residual = *reinterpret_cast<const uint2*>(norms + 128 + at);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int t = 2 * tile + j % 2, column = j / 2;
        const float norm = __half2float(reinterpret_cast<const __half*>(&n)[j]);
#pragma unroll
        for (int b = 0; b < Shape::kRowBlocks; ++b) {
          float s = integer_value(sums[t][2 * b + column]) * norm;
          if constexpr (Codes::kSketch) {
            s += integer_value(sketch[t][2 * b + column]) *
                 (q.sketch_ratio[b] * __half2float(reinterpret_cast<const __half*>(&residual)[j]));
          }
          score[b][8 * g + 4 * tile + j] = s;
        }
      }
    }
  }
}

// Value norms of the lane's tokens, two by two: norm[2 tile + j / 2].
struct ValueNorms {
  __half2 norm[8];

  __device__ __forceinline__ void load(const char* norms, int c) {
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const uint2 n = *reinterpret_cast<const uint2*>(norms + (16 * tile + 4 * c) * 2);
      norm[2 * tile] = *reinterpret_cast<const __half2*>(&n.x);
      norm[2 * tile + 1] = *reinterpret_cast<const __half2*>(&n.y);
    }
  }
  // Of the page; a NaN norm wins, so that it reaches every row.
  __device__ __forceinline__ float largest() const {
    const __half2 m = __hmax2_nan(__hmax2_nan(__hmax2_nan(norm[0], norm[1]), __hmax2_nan(norm[2], norm[3])),
                                  __hmax2_nan(__hmax2_nan(norm[4], norm[5]), __hmax2_nan(norm[6], norm[7])));
    __half n = __hmax_nan(__low2half(m), __high2half(m));
    n = __hmax_nan(n, __shfl_xor_sync(0xffffffffu, n, 1));
    n = __hmax_nan(n, __shfl_xor_sync(0xffffffffu, n, 2));
    return __half2float(n);
  }
  // norm <- 255 * norm / largest
  __device__ __forceinline__ void scale(float largest) {
    const float factor = __fdividef(255.0f, largest);
    if (largest >= 0x1p-7f) {
      const __half2 f = __float2half2_rn(factor);
#pragma unroll
      for (int i = 0; i < 8; ++i) norm[i] = __hmul2(norm[i], f);
    } else {  // the factor is beyond fp16
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float2 n = __half22float2(norm[i]);
        norm[i] = largest > 0 ? __floats2half2_rn(n.x * factor, n.y * factor) : __float2half2_rn(0.0f);
      }
    }
  }
};

// Removes the cells beyond the ends of a row: the page in which a sequence ends, or begins with exact rows. No value norm is
// NaN.
template <class Shape>
__device__ __forceinline__ void clip_page(int first_cell, int first, int cells, const int (&row_end)[Shape::kRowBlocks],
                                          float (&score)[Shape::kRowBlocks][16], ValueNorms& norms) {
#pragma unroll
  for (int t = 0; t < 16; ++t) {
    const int cell = first_cell + t / 4 * 16 + t % 4;
    __half& norm = reinterpret_cast<__half*>(norms.norm)[t];
    norm = cell >= first && cell < cells ? norm : __ushort_as_half(0);
#pragma unroll
    for (int b = 0; b < Shape::kRowBlocks; ++b) score[b][t] = cell >= first && cell < row_end[b] ? score[b][t] : -INFINITY;
  }
}

// Removes what a row must not see, and settles softcap and mask. Scores are base-2 logarithms. Value norms of cells that no row
// sees are cleared; a cell that only some rows see and whose value is NaN gives NaN to those.
template <class Shape>
__device__ __noinline__ void restrict_page(const AttendCall& call, uint32_t stream, uint32_t head, int page, int cells,
                                           int first_row, int r, int c, float (&score)[Shape::kRowBlocks][16],
                                           ValueNorms& norms) {
  const int first_cell = page * static_cast<int>(kPageTokens) + 4 * c;
  uint32_t is_nan = 0;
#pragma unroll 1
  for (int t = 0; t < 16; ++t) {
    const int cell = first_cell + t / 4 * 16 + t % 4;
    __half& norm = reinterpret_cast<__half*>(norms.norm)[t];
    if (__hisnan(norm)) is_nan |= 1u << t;
    if (cell >= cells || cell < static_cast<int>(call.exact_k.n_first) || __hisnan(norm)) norm = __ushort_as_half(0);
  }
#pragma unroll 1
  for (int b = 0; b < Shape::kRowBlocks; ++b) {
    const RowView view(call, stream, head, first_row + 8 * b + r, cells);
#pragma unroll 1
    for (int t = 0; t < 16; ++t) {
      const float s = view.score(score[b][t], first_cell + t / 4 * 16 + t % 4);
      score[b][t] = (is_nan >> t & 1u) && s != -INFINITY ? NAN : s;
    }
  }
}

// The same by a prepared step: `bits` are those of the page. A lane's four tokens of a tile are neighbours in the mask.
template <class Shape>
__device__ __noinline__ void restrict_step_page(const AttendCall& call, uint32_t stream, uint32_t head, int page, uint32_t bits,
                                                int first_row, int r, int c, float (&score)[Shape::kRowBlocks][16],
                                                ValueNorms& norms) {
  const kvt_cuda_attention& a = call.args;
  const StepShape& shape = call.step_shape;
  uint2 mask[Shape::kRowBlocks][4];
#pragma unroll
  for (int b = 0; b < Shape::kRowBlocks; ++b) {
    const uint32_t row = first_row + 8 * b + r, query = row / a.n_group;
    const bool sees = row < call.n_rows && (bits >> query & 1u), sees_all = sees && (bits >> (8 + query) & 1u);
    const char* from = call.step + shape.mask_offset() +
                       ((static_cast<size_t>(stream) * a.n_queries + query) * shape.n_pages() + page) * 128 + 8 * c;
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      mask[b][tile] = sees && !sees_all ? *reinterpret_cast<const uint2*>(from + 32 * tile)
                      : sees            ? make_uint2(0, 0)
                                        : make_uint2(0xfc00fc00u, 0xfc00fc00u);
    }
  }
  uint32_t is_seen = 0;  // bit t: some row sees token t of the lane
#pragma unroll
  for (int b = 0; b < Shape::kRowBlocks; ++b) {
    const RowView view(call, stream, head, first_row + 8 * b + r, 0);
#pragma unroll
    for (int t = 0; t < 16; ++t) {
      const float bias = __half2float(reinterpret_cast<const __half*>(&mask[b][t / 4])[t % 4]);
      score[b][t] = view.finish(score[b][t], bias);
      if (bias != -INFINITY) {
        is_seen |= 1u << t;
        if (__hisnan(reinterpret_cast<const __half*>(norms.norm)[t])) score[b][t] = NAN;
      }
    }
  }
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2) is_seen |= __shfl_xor_sync(0xffffffffu, is_seen, distance);
#pragma unroll
  for (int t = 0; t < 16; ++t) {
    __half& norm = reinterpret_cast<__half*>(norms.norm)[t];
    if (!(is_seen >> t & 1u) || __hisnan(norm)) norm = __ushort_as_half(0);
  }
}

template <class Codes, class Shape>
__global__ void __launch_bounds__(32 * Shape::kMaxWarps, 1) attend_codes_kernel(const __grid_constant__ AttendCall call) {
  constexpr int kRowBlocks = Shape::kRowBlocks, N = 2 * kRowBlocks;
  extern __shared__ __align__(128) char memory[];
  __shared__ __align__(8) uint64_t barriers[kMaxPageWarps * Shape::Ring::kBarriers];
  const kvt_cuda_attention& args = call.args;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
  const int n_row_warps = call.n_row_warps, n_page_warps = blockDim.x / 32 / n_row_warps;
  const int row_warp = warp % n_row_warps, page_warp = warp / n_row_warps;
  const int base_row = blockIdx.y * n_row_warps * Shape::kRows, first_row = base_row + row_warp * Shape::kRows;
  typename Shape::Ring ring(memory + page_warp * kStages * Shape::Ring::kStageBytes,
                            barriers + page_warp * Shape::Ring::kBarriers, page_warp, n_row_warps);
  const QueryArea<Shape> queries(memory + Shape::ring_bytes(n_page_warps), n_row_warps);
  float* combine_area = reinterpret_cast<float*>(memory + Shape::ring_bytes(n_page_warps) + Shape::query_bytes(n_row_warps));
  if (row_warp == 0) ring.initialise();

  uint32_t key_table[Codes::kKeyTable], value_table[Codes::kValueTable];
#pragma unroll
  for (int i = 0; i < Codes::kKeyTable; ++i) key_table[i] = keep_in_register(call.key_bytes[i]);
#pragma unroll
  for (int i = 0; i < Codes::kValueTable; ++i) value_table[i] = keep_in_register(call.value_bytes[i]);

  wait_for_predecessor();
  const int n_pages = count_pages(args, 0).all * static_cast<int>(args.n_kv_heads);
  const PageSplit split(call.n_blocks, n_pages);
  if (blockIdx.x >= split.n_blocks) return;
  const int share_first = split.first_of(blockIdx.x), share_end = split.first_of(blockIdx.x + 1);
  PageCursor here = find_page(args, share_first);  // the unit at hand

  // Requests run kStages pages ahead of the work, page numbers one request further.
  PageCursor ahead = here;
  const char *key_unit = nullptr, *value_unit = nullptr;
  const int32_t* table = nullptr;
  int next = share_first + page_warp, number = 0;
  uint32_t next_bits = 0;
  StepBits bits_ahead;
  auto move_ahead = [&](int n) {
    if (next >= share_end) return;
    ahead.page += n;
    if (key_unit == nullptr || ahead.page >= ahead.n_pages) {
      ahead.advance(args, 0);
      key_unit = static_cast<const char*>(args.k_pages) + ahead.stream * args.k_stream_stride + ahead.head * args.k_head_stride;
      value_unit =
          static_cast<const char*>(args.v_pages) + ahead.stream * args.v_stream_stride + ahead.head * args.v_head_stride;
      table =
          args.page_table == nullptr ? nullptr : args.page_table + static_cast<size_t>(ahead.stream) * args.page_table_stride;
      bits_ahead.restart();
    }
    number = table == nullptr ? ahead.page : table[ahead.page];
    next_bits = bits_ahead.next(StepPages(call, ahead.stream), ahead.page, n_page_warps, ahead.n_pages);
  };
  auto request = [&] {
    if (row_warp != 0) return;
    while (next < share_end && !StepPages::is_seen(next_bits)) {
      next += n_page_warps;
      move_ahead(n_page_warps);
    }
    ring.request(next < share_end, key_unit + number * args.k_page_stride, value_unit + number * args.v_page_stride);
    next += n_page_warps;
    move_ahead(n_page_warps);
  };
  if (row_warp == 0) {
    move_ahead(page_warp);
    for (int i = 0; i < kStages; ++i) request();
  }

  SoftmaxState<kRowBlocks, Shape::kTiles> state;
  const bool has_means = call.means.codes != nullptr;
  MeanScores<Shape> means;
  const int start[2] = {static_cast<int>(keep_in_register(kBias)), static_cast<int>(keep_in_register(kBias))};
  int p = share_first + page_warp;
  for (int segment = share_first; segment < share_end;) {
    const int segment_end = min(share_end, segment + here.n_pages - here.page), cells = stream_cells(args, here.stream);
    const PlainPages plain(call, cells);
    const StepPages step_pages(call, here.stream);
    StepBits bits_here;
    int row_end[kRowBlocks];
#pragma unroll
    for (int b = 0; b < kRowBlocks; ++b) row_end[b] = visible_end(call, first_row + 8 * b + r, cells);
    __syncthreads();  // the queries of the unit before are no longer read
    queries.prepare(call, here.stream, here.head, base_row);
    // Up to where the means that are held reach; without means, all of it.
    int part_end = segment_end;
    const int to_page = here.page - segment;  // from places in the list to pages of the unit
    if (has_means) part_end = means.hold(call, here.stream, here.head, base_row, here.page, segment_end + to_page, combine_area) - to_page;
    __syncthreads();
    QueryOperands<Codes, Shape> q;
    q.load(queries, first_row - base_row, r, c);
    state.clear();

    for (;; p += n_page_warps) {
      while (p >= part_end && part_end < segment_end) {  // for all warps alike
        __syncthreads();
        part_end = means.hold(call, here.stream, here.head, base_row, part_end + to_page, segment_end + to_page, combine_area) - to_page;
        __syncthreads();
      }
      if (p >= segment_end) break;
      const int page_in_unit = p + to_page;
      const uint32_t bits = bits_here.next(step_pages, page_in_unit, n_page_warps, here.n_pages);
      if (!StepPages::is_seen(bits)) continue;
      const char* page = ring.wait();
      const char* value_page = page + Shape::kKeyBytes;
      float score[kRowBlocks][16], factor[kRowBlocks], mean[kRowBlocks];  // base-2 scores are score * factor + mean
      score_page<Codes, Shape>(q, key_table, page, r, c, score);
      ValueNorms norms;
      norms.load(value_page + 2 * Shape::kGroupBytes, c);
#pragma unroll
      for (int b = 0; b < kRowBlocks; ++b) {
        factor[b] = q.factor[b];
        mean[b] = 0.0f;
      }
      if (has_means) {
        const float* scores = means.at_page(call, page_in_unit, combine_area) + row_warp * Shape::kRows + r;
#pragma unroll
        for (int b = 0; b < kRowBlocks; ++b) mean[b] = scores[8 * b];
      }
      if (!plain.has(page_in_unit) || !step_pages.is_whole(bits)) {
#pragma unroll
        for (int b = 0; b < kRowBlocks; ++b) {
#pragma unroll
          for (int t = 0; t < 16; ++t) score[b][t] = fmaf(score[b][t], factor[b], mean[b]);
          factor[b] = 1.0f;
          mean[b] = 0.0f;
        }
        if (!plain.extras && !__any_sync(0xffffffffu, isnan(norms.largest()))) {
          clip_page<Shape>(page_in_unit * static_cast<int>(kPageTokens) + 4 * c, static_cast<int>(call.exact_k.n_first), cells, row_end,
                           score, norms);
        } else {
          // Copies: what a call may write lies in memory, and the originals must stay in registers.
          float restricted[kRowBlocks][16];
          ValueNorms kept = norms;
#pragma unroll
          for (int b = 0; b < kRowBlocks; ++b) {
#pragma unroll
            for (int t = 0; t < 16; ++t) restricted[b][t] = score[b][t];
          }
          if (call.step != nullptr) {
            restrict_step_page<Shape>(call, here.stream, here.head, page_in_unit, bits, first_row, r, c, restricted, kept);
          } else {
            restrict_page<Shape>(call, here.stream, here.head, page_in_unit, cells, first_row, r, c, restricted, kept);
          }
          norms = kept;
#pragma unroll
          for (int b = 0; b < kRowBlocks; ++b) {
#pragma unroll
            for (int t = 0; t < 16; ++t) score[b][t] = restricted[b][t];
          }
        }
      }
      float largest[kRowBlocks], largest_of_codes[kRowBlocks];  // with and without the mean
#pragma unroll
      for (int b = 0; b < kRowBlocks; ++b) {
        float part[4];  // short chains: the warp has little else to do meanwhile
#pragma unroll
        for (int t = 0; t < 4; ++t) part[t] = fmaxf(fmaxf(score[b][t], score[b][4 + t]), fmaxf(score[b][8 + t], score[b][12 + t]));
        largest[b] = fmaxf(fmaxf(part[0], part[1]), fmaxf(part[2], part[3]));
        largest[b] = fmaxf(largest[b], __shfl_xor_sync(0xffffffffu, largest[b], 1));
        largest_of_codes[b] = fmaxf(largest[b], __shfl_xor_sync(0xffffffffu, largest[b], 2)) * factor[b];
        largest[b] = largest_of_codes[b] + mean[b];
      }
      const float largest_norm = norms.largest();
      state.make_room(largest);
      norms.scale(largest_norm);

      // Weights as bytes: exp2(score - page maximum) * norm * 255 / largest norm, in the low byte of 1024 + integer in fp16.
      uint32_t weights[2][N];
      float fold[kRowBlocks];
#pragma unroll
      for (int b = 0; b < kRowBlocks; ++b) {
        const bool removed = largest[b] == -INFINITY;  // the whole page
        const float base = removed ? 0.0f : largest_of_codes[b],
                    page_weight = removed ? 0.0f : exp2_fast(largest[b] - state.reference[b]);
        fold[b] = page_weight * largest_norm * (kBiasedFactor / 255.0f);
        state.bias[b] = fmaf(biased_value(kBias), fold[b], state.bias[b]);
        float sum = 0;
        uint32_t w[8];
#pragma unroll
        for (int t = 0; t < 8; ++t) {
          const float e0 = exp2_fast(fmaf(score[b][2 * t], factor[b], -base)),
                      e1 = exp2_fast(fmaf(score[b][2 * t + 1], factor[b], -base));
          sum += e0 + e1;
          const __half2 x = __hfma2(__floats2half2_rn(e0, e1), norms.norm[t], __float2half2_rn(1024.0f));
          w[t] = *reinterpret_cast<const uint32_t*>(&x);
        }
        state.sum[b] = fmaf(sum, page_weight, state.sum[b]);
        // Byte order of the value nibbles: tokens 4c, 16 + 4c, 4c + 1, 16 + 4c + 1, then the next two pairs.
#pragma unroll
        for (int g = 0; g < 2; ++g) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            weights[g][kRowBlocks * half + b] = byte_permute(w[4 * g + half], w[4 * g + 2 + half], 0x6240);
          }
        }
      }

      uint32_t before[2][3] = {};  // trellis: subgroups k = 1, 2, 3 of the word before
#pragma unroll
      for (int half = 0; half < Shape::kHalves; ++half) {
        // The lane's words are consecutive in their trellis chain: upper lanes (r >= 4) go on where the lower ones end, and
        // round again.
        const int block = Shape::kDimV == 64 ? 0 : Shape::kHalves * (r / 4) + half;
        const int word = r % 4 * 4 + (Shape::kDimV == 64 ? r / 4 * 2 : 0);
        uint32_t x[2][Codes::kValueBits][Shape::kWords];
#pragma unroll
        for (int g = 0; g < 2; ++g) {
          const char* group = value_page + g * Shape::kGroupBytes + c * 64;
#pragma unroll
          for (int k = 0; k < Codes::kValueBits; ++k) {
            const char* from = group + (k * Shape::kBlocks + block) * 256 + word * 4;
            if constexpr (Shape::kWords == 4) {
              *reinterpret_cast<uint4*>(x[g][k]) = *reinterpret_cast<const uint4*>(from);
            } else {
              *reinterpret_cast<uint2*>(x[g][k]) = *reinterpret_cast<const uint2*>(from);
            }
          }
          if (Codes::kTrellis && half == 0) {
            const int last_block = Shape::kDimV == 64 ? 0 : Shape::kHalves * (1 - r / 4) + Shape::kHalves - 1;
            const int last_word = r % 4 * 4 + (Shape::kDimV == 64 ? (1 - r / 4) * 2 + 1 : 3);
            uint32_t stored[Codes::kValueBits], y[4];
#pragma unroll
            for (int k = 0; k < Codes::kValueBits; ++k) {
              stored[k] = *reinterpret_cast<const uint32_t*>(group + (k * Shape::kBlocks + last_block) * 256 + last_word * 4);
            }
            value_subgroups(stored, y);
#pragma unroll
            for (int k = 0; k < 3; ++k) before[g][k] = y[k + 1];
          }
        }
        if (half == Shape::kHalves - 1) {
          ring.release();  // all of the page is in registers
          request();
        }
#pragma unroll
        for (int e = 0; e < Shape::kWords; ++e) {
          uint32_t y[2][4];
#pragma unroll
          for (int g = 0; g < 2; ++g) {
            uint32_t stored[Codes::kValueBits];
#pragma unroll
            for (int k = 0; k < Codes::kValueBits; ++k) stored[k] = x[g][k][e];
            value_subgroups(stored, y[g]);
          }
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            int sums[N];
#pragma unroll
            for (int j = 0; j < N; ++j) sums[j] = start[j % 2];
#pragma unroll
            for (int g = 0; g < 2; ++g) {
              const uint32_t p1 = k > 0 ? y[g][k - 1] : before[g][2], p2 = k > 1 ? y[g][k - 2] : before[g][k + 1],
                             p3 = k > 2 ? y[g][k - 3] : before[g][k];
              uint32_t b0, b1;
              Codes::values(y[g][k], p1, p2, p3, value_table, b0, b1);
              Codes::weigh(sums, weights[g], b0, b1, sums);
            }
            float(&acc)[N] = state.acc[(half * 4 + k) * Shape::kWords + e];
#pragma unroll
            for (int j = 0; j < N; ++j) acc[j] = fmaf(biased_value(sums[j]), fold[j / 2], acc[j]);
          }
#pragma unroll
          for (int g = 0; g < 2; ++g) {
#pragma unroll
            for (int k = 0; k < 3; ++k) before[g][k] = y[g][k + 1];
          }
        }
      }
    }

#pragma unroll
    for (int t = 0; t < Shape::kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < N; ++j) state.acc[t][j] = (state.acc[t][j] - state.bias[j / 2]) * kBiasedUnit;
    }
    if (segment_end == share_end) allow_successor();
    const uint32_t unit = here.stream * args.n_kv_heads + here.head;
    combine_warps<kRowBlocks, Shape::kTiles, Shape::kDimV, 1>(
        call, state, combine_area, blockIdx.x + unit, base_row, [&](int tile, int column) {
          const int e = tile % Shape::kWords, k = tile / Shape::kWords % 4, half = tile / Shape::kWords / 4, n = 2 * c + column;
          const int block = Shape::kDimV == 64 ? 0 : Shape::kHalves * (n / 4) + half;
          return 64 * block + 16 * k + n % 4 * 4 + (Shape::kDimV == 64 ? n / 4 * 2 : 0) + e;
        });
    here.advance(args, segment_end - segment);
    segment = segment_end;
  }
}

// More warps hide more latency; fewer, in two blocks, start and finish sooner when there is little to read.
template <class Shape>
AttendPlan plan_shape(const kvt_cuda_attention& args, const DeviceLimits& device) {
  const uint64_t pages = count_list_pages(args), n_multiprocessors = device.n_multiprocessors;
  const uint32_t n_groups = (args.n_group * args.n_queries + Shape::kRows - 1) / Shape::kRows;
  const bool small = pages < 150 * n_multiprocessors;
  const uint32_t n_warps = small ? 4 : Shape::kMaxWarps;
  AttendPlan plan{};
  plan.n_row_warps = std::min<uint32_t>(n_groups, n_groups > 4 ? 8 : n_groups > 2 ? 4 : 2);
  plan.n_row_warps = std::min(plan.n_row_warps, n_warps);
  plan.n_row_grid = (n_groups + plan.n_row_warps - 1) / plan.n_row_warps;
  plan.n_page_warps = n_warps / plan.n_row_warps;
  while (plan.n_page_warps > 1 && Shape::shared_bytes(plan.n_page_warps, plan.n_row_warps) > device.shared_bytes)
    --plan.n_page_warps;
  plan.shared_bytes = Shape::shared_bytes(plan.n_page_warps, plan.n_row_warps);
  const uint64_t n_blocks =
      n_multiprocessors * (small && 2 * (plan.shared_bytes + 1024) <= static_cast<uint32_t>(device.shared_bytes) ? 2 : 1);
  plan.n_blocks = static_cast<uint32_t>(std::max<uint64_t>(1, std::min(n_blocks, pages)));
  return plan;
}

template <class Shape, class Codes>
void launch_shape(const AttendCall& call, const AttendPlan& plan, cudaStream_t stream, bool overlap) {
  launch_overlapped(attend_codes_kernel<Codes, Shape>, dim3(plan.n_blocks, plan.n_row_grid),
                    32 * plan.n_page_warps * plan.n_row_warps, plan.shared_bytes, stream, overlap, call);
}

// use(CodeShape<...>{})
template <class Codes, class Use>
auto with_shape(const kvt_cuda_attention& args, const Use& use) {
  if constexpr (Codes::kManyRows) {
    if (args.n_group * args.n_queries > 8 && args.head_dim_k == 64) return use(CodeShape<Codes, 64, 64, 2>{});
    if (args.n_group * args.n_queries > 8 && args.head_dim_k == 128) return use(CodeShape<Codes, 128, 128, 2>{});
  }
  switch (args.head_dim_k) {
    case 64:
      return use(CodeShape<Codes, 64, 64, 1>{});
    case 128:
      return use(CodeShape<Codes, 128, 128, 1>{});
    case 192:
      return use(CodeShape<Codes, 192, 128, 1>{});
    default:
      return use(CodeShape<Codes, 256, 256, 1>{});
  }
}

template <class Codes>
constexpr AttendKernels make_attend_kernels() {
  return {[](const kvt_cuda_attention& args, const DeviceLimits& device) {
            return with_shape<Codes>(args, [&](auto shape) { return plan_shape<decltype(shape)>(args, device); });
          },
          [](const AttendCall& call, const AttendPlan& plan, cudaStream_t stream, bool overlap) {
            with_shape<Codes>(call.args,
                              [&](auto shape) { launch_shape<decltype(shape), Codes>(call, plan, stream, overlap); });
          }};
}

}  // namespace
}  // namespace kvt::cuda

#endif
