// Decode attention on fp16 pages: the yardstick of the compressed kernels, and codec f16. Same list of pages, same shares; rows
// are read straight into registers, one tile of 16 tokens ahead.
#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/element_types.cuh"
#include "cuda/launch_overlapped.cuh"
#include "cuda/row_visibility.cuh"
#include "cuda/softmax_state.cuh"
#include "cuda/work_split.cuh"

namespace kvt::cuda {
namespace {

constexpr int kTileTokens = 16;
constexpr int kHalfWarps = 4;  // of a block; two blocks a multiprocessor

// kSplitV: warps that share a value row, each with its part of the coordinates and all of the key (head dim 256: registers).
template <int kDimK_, int kDimV_, int kSplitV_, int kRowBlocks_>
struct HalfShape {
  static constexpr int kDimK = kDimK_, kDimV = kDimV_, kSplitV = kSplitV_, kRowBlocks = kRowBlocks_;
  static constexpr int kRows = 16;  // of a warp; kRowBlocks = 1: only the first eight are used
  static constexpr int kPartV = kDimV / kSplitV;
  static constexpr int kTiles = kPartV / 8;
};

__device__ __forceinline__ uint32_t query_pair(const AttendCall& call, uint32_t stream, uint32_t head, uint32_t row, int dim) {
  if (row >= call.n_rows) return 0;
  const kvt_cuda_attention& a = call.args;
  const char* q = static_cast<const char*>(a.q) + stream * a.q_stream_stride + row / a.n_group * a.q_query_stride +
                  (head * a.n_group + row % a.n_group) * a.q_head_stride;
  const __half2 pair = __floats2half2_rn(load_element(q, a.q_type, dim), load_element(q, a.q_type, dim + 1));
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <class Shape>
__global__ void __launch_bounds__(32 * kHalfWarps, 2) attend_halves_kernel(const __grid_constant__ AttendCall call) {
  constexpr int kDimK = Shape::kDimK, kDimV = Shape::kDimV, kRowBlocks = Shape::kRowBlocks, kPartV = Shape::kPartV;
  constexpr int kKeyLoads = kDimK / 32, kValueLoads = kPartV / 64;
  extern __shared__ __align__(128) char memory[];
  const kvt_cuda_attention& args = call.args;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
  const int n_row_warps = call.n_row_warps, n_page_warps = kHalfWarps / n_row_warps;
  const int row_warp = warp % n_row_warps, page_warp = warp / n_row_warps;
  const int base_row = blockIdx.y * (n_row_warps / Shape::kSplitV) * Shape::kRows;
  const int first_row = base_row + row_warp / Shape::kSplitV * Shape::kRows, part = row_warp % Shape::kSplitV;

  wait_for_predecessor();
  const int n_pages = count_pages(args, 0).all * static_cast<int>(args.n_kv_heads);
  const PageSplit split(call.n_blocks, n_pages);
  if (blockIdx.x >= split.n_blocks) return;
  const int share_first = split.first_of(blockIdx.x), share_end = split.first_of(blockIdx.x + 1);
  PageCursor here = find_page(args, share_first);
  const float factor = args.scale * kLog2e;

  for (int segment = share_first; segment < share_end;) {
    const int segment_end = min(share_end, segment + here.n_pages - here.page), cells = stream_cells(args, here.stream);
    const int n_tiles = (segment_end - segment) * static_cast<int>(kPageTokens) / kTileTokens;
    const PlainPages plain(call, cells);
    const char* k_head =
        static_cast<const char*>(args.k_pages) + here.stream * args.k_stream_stride + here.head * args.k_head_stride;
    const char* v_head =
        static_cast<const char*>(args.v_pages) + here.stream * args.v_stream_stride + here.head * args.v_head_stride;
    uint32_t q[kDimK / 16][4];  // dims in the order in which a lane's 16-byte loads of keys bring them
#pragma unroll
    for (int i = 0; i < kDimK / 16; ++i) {
      const int dim = 8 * (c + 4 * (i / 2)) + 4 * (i % 2);
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const bool used = b < kRowBlocks;
        q[i][b] = used ? query_pair(call, here.stream, here.head, first_row + 8 * b + r, dim) : 0;
        q[i][2 + b] = used ? query_pair(call, here.stream, here.head, first_row + 8 * b + r, dim + 2) : 0;
      }
    }
    uint4 key[2][kKeyLoads], value[4][kValueLoads];
    auto page_number = [&](int tile) {
      const int page = here.page + tile / 4;
      return args.page_table == nullptr ? page : args.page_table[here.stream * args.page_table_stride + page];
    };
    auto load_keys = [&](int number, int tile) {
      const char* from = k_head + number * args.k_page_stride + tile % 4 * kTileTokens * kDimK * 2;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int i = 0; i < kKeyLoads; ++i)
          key[j][i] = __ldg(reinterpret_cast<const uint4*>(from + (r + 8 * j) * kDimK * 2 + (c + 4 * i) * 16));
      }
    };
    // Tokens 2c, 2c + 1, 8 + 2c, 9 + 2c. What lies beyond the last cell may be anything, so it is not even read.
    auto load_values = [&](int number, int tile) {
      const char* from = v_head + number * args.v_page_stride + tile % 4 * kTileTokens * kDimV * 2 + part * kPartV * 2;
      const int n_left = cells - here.page * static_cast<int>(kPageTokens) - tile * kTileTokens;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int token = 2 * c + k % 2 + 8 * (k / 2);
#pragma unroll
        for (int i = 0; i < kValueLoads; ++i) {
          value[k][i] = token < n_left ? __ldg(reinterpret_cast<const uint4*>(from + token * kDimV * 2 + i * 128 + r * 16))
                                       : make_uint4(0, 0, 0, 0);
        }
      }
    };
    SoftmaxState<2, Shape::kTiles> state;  // the product has sixteen rows in any case
    state.clear();
    if (page_warp < n_tiles) {
      const int number = page_number(page_warp);
      load_keys(number, page_warp);
      load_values(number, page_warp);
    }
    int next_number = page_warp + n_page_warps < n_tiles ? page_number(page_warp + n_page_warps) : 0;
    for (int tile = page_warp; tile < n_tiles; tile += n_page_warps) {
      const int next = tile + n_page_warps;
      const int number_after = next + n_page_warps < n_tiles ? page_number(next + n_page_warps) : 0;
      float product[2][4] = {};  // rows r, r + 8 of tokens 8 j + 2c, 2c + 1
#pragma unroll
      for (int i = 0; i < kKeyLoads; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          mma_f16(product[j], q[2 * i], key[j][i].x, key[j][i].y);
          mma_f16(product[j], q[2 * i + 1], key[j][i].z, key[j][i].w);
        }
      }
      const int page = here.page + tile / 4;
      float scale = factor;
      if (!plain.has(page)) {
        const int first_cell = page * static_cast<int>(kPageTokens) + tile % 4 * kTileTokens + 2 * c;
#pragma unroll
        for (int b = 0; b < kRowBlocks; ++b) {
          const RowView view(call, here.stream, here.head, first_row + 8 * b + r, cells);
#pragma unroll
          for (int t = 0; t < 4; ++t) {
            float& s = product[t / 2][2 * b + t % 2];
            s = view.score(s * factor, first_cell + t / 2 * 8 + t % 2);
          }
        }
        scale = 1.0f;
      }
      if (next < n_tiles) load_keys(next_number, next);
      float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int b = 0; b < kRowBlocks; ++b) {
        largest[b] = fmaxf(fmaxf(product[0][2 * b], product[0][2 * b + 1]), fmaxf(product[1][2 * b], product[1][2 * b + 1]));
        largest[b] = fmaxf(largest[b], __shfl_xor_sync(0xffffffffu, largest[b], 1));
        largest[b] = fmaxf(largest[b], __shfl_xor_sync(0xffffffffu, largest[b], 2)) * scale;
      }
      state.make_room(largest);
      uint32_t weights[4] = {};  // {row r, row r + 8} of tokens 2c, 2c + 1, then of 8 + 2c, 9 + 2c
#pragma unroll
      for (int b = 0; b < kRowBlocks; ++b) {
        const float base = state.reference[b] == -INFINITY ? 0.0f : state.reference[b];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float e0 = exp2_fast(fmaf(product[j][2 * b], scale, -base)),
                      e1 = exp2_fast(fmaf(product[j][2 * b + 1], scale, -base));
          state.sum[b] += e0 + e1;
          const __half2 pair = __floats2half2_rn(e0, e1);
          weights[2 * j + b] = *reinterpret_cast<const uint32_t*>(&pair);
        }
      }
#pragma unroll
      for (int i = 0; i < kValueLoads; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const uint32_t a0 = (&value[0][i].x)[k], a1 = (&value[1][i].x)[k], a2 = (&value[2][i].x)[k], a3 = (&value[3][i].x)[k];
          mma_f16(state.acc[8 * i + 2 * k], weights, byte_permute(a0, a1, 0x5410), byte_permute(a2, a3, 0x5410));
          mma_f16(state.acc[8 * i + 2 * k + 1], weights, byte_permute(a0, a1, 0x7632), byte_permute(a2, a3, 0x7632));
        }
      }
      if (next < n_tiles) load_values(next_number, next);
      next_number = number_after;
    }

    if (segment_end == share_end) allow_successor();
    const uint32_t unit = here.stream * args.n_kv_heads + here.head;
    combine_warps<2, Shape::kTiles, kDimV, Shape::kSplitV>(
        call, state, reinterpret_cast<float*>(memory), blockIdx.x + unit, base_row,
        [&](int t, int column) { return part * kPartV + t / 8 * 64 + 8 * (2 * c + column) + t % 8; });
    here.advance(args, segment_end - segment);
    segment = segment_end;
  }
}

template <class Shape>
AttendPlan plan_shape(const kvt_cuda_attention& args, const DeviceLimits& device) {
  const uint32_t n_groups = (args.n_group * args.n_queries + Shape::kRows - 1) / Shape::kRows;
  AttendPlan plan{};
  plan.n_row_warps = std::min<uint32_t>(kHalfWarps, Shape::kSplitV * (n_groups > 2 ? 4 : n_groups));
  plan.n_row_grid = (n_groups * Shape::kSplitV + plan.n_row_warps - 1) / plan.n_row_warps;
  plan.n_page_warps = kHalfWarps / plan.n_row_warps;
  plan.shared_bytes = combine_bytes<Shape::kRows, Shape::kDimV>(kHalfWarps);
  plan.n_blocks =
      static_cast<uint32_t>(std::max<uint64_t>(1, std::min<uint64_t>(2 * device.n_multiprocessors, count_list_pages(args))));
  return plan;
}

// use(HalfShape<...>{})
template <class Use>
auto with_shape(const kvt_cuda_attention& args, const Use& use) {
  const bool few = args.n_group * args.n_queries <= 8;
  switch (args.head_dim_k) {
    case 64:
      return few ? use(HalfShape<64, 64, 1, 1>{}) : use(HalfShape<64, 64, 1, 2>{});
    case 128:
      return few ? use(HalfShape<128, 128, 1, 1>{}) : use(HalfShape<128, 128, 1, 2>{});
    case 192:
      return few ? use(HalfShape<192, 128, 1, 1>{}) : use(HalfShape<192, 128, 1, 2>{});
    default:
      return few ? use(HalfShape<256, 256, 2, 1>{}) : use(HalfShape<256, 256, 2, 2>{});
  }
}

}  // namespace

const AttendKernels kAttendHalves = {
    [](const kvt_cuda_attention& args, const DeviceLimits& device) {
      return with_shape(args, [&](auto shape) { return plan_shape<decltype(shape)>(args, device); });
    },
    [](const AttendCall& call, const AttendPlan& plan, cudaStream_t stream, bool overlap) {
      with_shape(call.args, [&](auto shape) {
        launch_overlapped(attend_halves_kernel<decltype(shape)>, dim3(plan.n_blocks, plan.n_row_grid), 32 * kHalfWarps,
                          plan.shared_bytes, stream, overlap, call);
      });
    }};

}  // namespace kvt::cuda
