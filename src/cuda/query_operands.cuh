// The shape of a code kernel, and its query rows: rotated and rounded to int8 in shared memory, then operands of the tensor
// cores.
#ifndef KVT_CUDA_QUERY_OPERANDS_CUH
#define KVT_CUDA_QUERY_OPERANDS_CUH

#include "cuda/code_bytes.cuh"
#include "cuda/element_types.cuh"
#include "cuda/page_ring.cuh"
#include "cuda/softmax_state.cuh"
#include "cuda/warp_rotation.cuh"

namespace kvt::cuda {
namespace {

template <class Codes, int kDimK_, int kDimV_, int kRowBlocks_>
struct CodeShape {
  static constexpr int kDimK = kDimK_, kDimV = kDimV_, kRowBlocks = kRowBlocks_;
  static constexpr int kRows = 8 * kRowBlocks;
  static constexpr int kLines = kDimK / 32;   // key lines of a lane
  static constexpr int kBlocks = kDimV / 64;  // 64-dim blocks of a value line
  static constexpr int kTileBytes = KeyPlanes(kDimK, Codes::kKeyBits).tile_bytes();
  static constexpr int kGroupBytes = ValuePlanes(kDimV, Codes::kValueBits).group_bytes();
  static constexpr int kHalves = kDimV > 128 ? 2 : 1;  // passes over the value lines
  static constexpr int kWords = kDimV == 64 ? 2 : 4;   // value words of a lane in one pass and line
  static constexpr int kTiles = kDimV / 8;
  static constexpr int kPasses = Codes::kSketch ? 2 : 1;
  static constexpr int kKeyBytes = 4 * kTileBytes + 128 * kPasses, kValueBytes = 2 * kGroupBytes + 128;
  using Ring = PageRing<kKeyBytes, kValueBytes>;
  static constexpr int kMaxWarps = kRowBlocks == 1 && kDimK <= 128 ? 12 : 8;  // by registers

  static constexpr int ring_bytes(int n_page_warps) { return n_page_warps * kStages * Ring::kStageBytes; }
  static constexpr int query_bytes(int n_row_warps) { return n_row_warps * kRows * (kPasses * kDimK + 4 * sizeof(float)); }
  static constexpr int shared_bytes(int n_page_warps, int n_row_warps) {
    return ring_bytes(n_page_warps) + query_bytes(n_row_warps) + combine_bytes<kRows, kDimV>(n_page_warps * n_row_warps);
  }
};

// The query rows of a unit, rotated and rounded to int8, in shared memory.
template <class Shape>
struct QueryArea {
  int8_t* q;      // [pass][row][kDimK]
  float* factor;  // [row][4]: score factor, sum of q8; sketch factor, sum of its q8
  int n_rows;     // that are held: whole row warps

  __device__ QueryArea(char* memory, int n_row_warps)
      : q(reinterpret_cast<int8_t*>(memory)), n_rows(n_row_warps * Shape::kRows) {
    factor = reinterpret_cast<float*>(memory + Shape::kPasses * n_rows * Shape::kDimK);
  }
  __device__ const int8_t* row(int pass, int r) const { return q + (pass * n_rows + r) * Shape::kDimK; }

  // For the whole block; a warp takes a few rows at a time, so that their latencies overlap. base_row: the first row of the
  // block.
  __device__ void prepare(const AttendCall& call, uint32_t stream, uint32_t head, int base_row) const {
    using Row = WarpRow<Shape::kDimK>;
    constexpr int kBatch = 2 * Shape::kRowBlocks;
    const kvt_cuda_attention& a = call.args;
    const int lane = threadIdx.x % 32;
    const float* scale =
        a.key_scale == nullptr
            ? nullptr
            : reinterpret_cast<const float*>(reinterpret_cast<const char*>(a.key_scale) + head * a.key_scale_head_stride);
    for (int first = threadIdx.x / 32 * kBatch; first < n_rows; first += blockDim.x / 32 * kBatch) {
      float v[kBatch][Row::kCount], poison[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const uint32_t row = base_row + first + b;
        const bool valid = row < call.n_rows;
        const char* from = static_cast<const char*>(a.q) + stream * a.q_stream_stride + row / a.n_group * a.q_query_stride +
                           (head * a.n_group + row % a.n_group) * a.q_head_stride;
#pragma unroll
        for (int i = 0; i < Row::kCount; ++i) v[b][i] = valid ? load_element(from, a.q_type, Row::coordinate(i, lane)) : 0.0f;
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        poison[b] = 0;  // NaN if a coordinate is not finite: then so is the row's result, as in fp16
#pragma unroll
        for (int i = 0; i < Row::kCount; ++i) {
          if (scale != nullptr) v[b][i] *= scale[Row::coordinate(i, lane)];
          poison[b] += v[b][i] * 0.0f;
        }
        poison[b] = warp_sum(poison[b]);
      }
      for (int pass = 0; pass < Shape::kPasses; ++pass) {
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          Row::flip(call.signs[pass], v[b], lane);
          Row::transform(v[b], lane);
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          const int r = first + b;
          float largest = 0;
#pragma unroll
          for (int i = 0; i < Row::kCount; ++i) largest = fmaxf(largest, fabsf(v[b][i]));
          largest = warp_max(largest);
          const float inverse = largest > 0 ? __fdividef(127.0f, largest) : 0.0f, unit = largest * (1.0f / 127.0f);
          float sum = 0;
#pragma unroll
          for (int i = 0; i < Row::kCount; ++i) {
            const float rounded = fminf(fmaxf(rintf(v[b][i] * inverse), -127.0f), 127.0f);
            q[(pass * n_rows + r) * Shape::kDimK + Row::coordinate(i, lane)] = static_cast<int8_t>(rounded);
            sum += rounded;
          }
          sum = warp_sum(sum);
          if (lane == 0) {
            factor[4 * r + 2 * pass] = (pass == 0 ? call.score_factor : call.sketch_factor) * unit + poison[b];
            factor[4 * r + 2 * pass + 1] = sum;
          }
        }
      }
    }
  }
};

// The rows of one warp as A operands and the factors of their scores.
template <class Codes, class Shape>
struct QueryOperands {
  static constexpr int kRegisters = 2 * Shape::kRowBlocks;
  uint32_t level[Shape::kLines][kRegisters];
  uint32_t sign[Codes::kSketch ? Shape::kLines : 1][kRegisters];
  int level_start[kRegisters], sign_start[kRegisters];  // of the accumulators
  float factor[Shape::kRowBlocks], sketch_ratio[Shape::kRowBlocks];

  __device__ void load(const QueryArea<Shape>& area, int first_row, int r, int c) {
#pragma unroll
    for (int b = 0; b < Shape::kRowBlocks; ++b) {
      const int row = first_row + 8 * b + r;
#pragma unroll
      for (int i = 0; i < Shape::kLines; ++i) {
        // Bytes of a word in the order in which a permute takes its nibbles: dims 0, 4, 1, 5 of the line, then 2, 6, 3, 7. Codes of
        // 8 bits are taken as they lie.
        const uint2 q = *reinterpret_cast<const uint2*>(area.row(0, row) + 8 * (4 * i + c));
        level[i][b] = Codes::kKeyBits == 8 ? q.x : byte_permute(q.x, q.y, 0x5140);
        level[i][Shape::kRowBlocks + b] = Codes::kKeyBits == 8 ? q.y : byte_permute(q.x, q.y, 0x7362);
        if constexpr (Codes::kSketch) {
          const uint2 s = *reinterpret_cast<const uint2*>(area.row(1, row) + 8 * (4 * i + c));
          sign[i][b] = s.x;
          sign[i][Shape::kRowBlocks + b] = s.y;
        }
      }
      const float* f = area.factor + 4 * row;
      factor[b] = f[0];
      const int sum = static_cast<int>(f[1]);
      level_start[2 * b] = level_start[2 * b + 1] = kMagicBits - (Codes::kOffsetKeys ? 64 * sum : 0);
      if constexpr (Codes::kSketch) {
        sketch_ratio[b] = f[0] > 0 ? f[2] / f[0] : 0.0f;
        sign_start[2 * b] = sign_start[2 * b + 1] = kMagicBits + 64 * static_cast<int>(f[3]);
      }
    }
  }
};

}  // namespace
}  // namespace kvt::cuda

#endif
