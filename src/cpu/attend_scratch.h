// Scratch of one attention pass, carved from AttendBlock::scratch. Sizes are upper bounds for kMaxRows rows.
#ifndef KVT_CPU_ATTEND_SCRATCH_H
#define KVT_CPU_ATTEND_SCRATCH_H

#include "cpu/kernel_table.h"

namespace kvt::cpu {

// Hands out 64-byte aligned arrays; with a null base it only adds up the size.
class ScratchArena {
 public:
  explicit ScratchArena(uint8_t* base) : base_(base) {}
  template <class T>
  T* take(size_t n) {
    T* p = base_ != nullptr ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (n * sizeof(T) + 63) / 64 * 64;
    return p;
  }
  size_t used() const { return used_; }

 private:
  uint8_t* base_;
  size_t used_ = 0;
};

// Arrays that every codec needs.
struct SoftmaxScratch {
  float* mask;         // [kMaxRows][64] additive mask of the page, one row a query or, with head strides, one a query row
  float* key_norm;     // [64]
  float* residual;     // [64]
  float* value_norm;   // [64]
  float* score;        // [4][64] of the rows in flight
  float* probability;  // [kMaxRows][64], f16 only
  float* rescale;      // [2][kMaxRows] factor of the old accumulator; codes keep two pages in flight
  float* weight_unit;  // [2][kMaxRows] value of one weight step
  uint8_t* weight;     // [2][kMaxRows][64] softmax weight * value norm, 0..127

  explicit SoftmaxScratch(ScratchArena& arena)
      : mask(arena.take<float>(size_t{kMaxRows} * 64)),
        key_norm(arena.take<float>(64)),
        residual(arena.take<float>(64)),
        value_norm(arena.take<float>(64)),
        score(arena.take<float>(4 * 64)),
        probability(arena.take<float>(size_t{kMaxRows} * 64)),
        rescale(arena.take<float>(size_t{2} * kMaxRows)),
        weight_unit(arena.take<float>(size_t{2} * kMaxRows)),
        weight(arena.take<uint8_t>(size_t{2} * kMaxRows * 64)) {}
};

// Compressed codecs: everything is int8.
struct CodeScratch {
  uint8_t* key_planes;    // [4 tiles][head_dim_k / 8][64] a page of 2- or 3-bit keys as nibbles
  uint8_t* value_planes;  // a page of 2-bit values in the 3-bit packing, at most half a byte a value
  uint8_t* key_levels;    // [64] level + kLevelOffset at each index that nibbles yield (fill_levels)
  uint8_t* value_levels;  // [64] level, two's complement
  int8_t* query;          // [kMaxRows][head_dim_k] R q / unit
  int8_t* sketch_query;   // [kMaxRows][head_dim_k] S R q / unit
  float* query_factor;    // [kMaxRows] score = query_factor * norm * sum
  float* sketch_factor;   // [kMaxRows]
  int32_t* query_offset;  // [kMaxRows] kLevelOffset * sum of query
  int32_t* sketch_sum;    // [kMaxRows] sum of sketch_query
  float* mean_score;      // [kMaxRows] score of the mean that was subtracted from a page's keys
  uint8_t* key;           // [4 tiles][head_dim_k / 4][16 tokens][4 dims] level + kLevelOffset
  uint8_t* sign;          // the same order, 1 = negative
  int8_t* value;          // [16 quads][head_dim_v][4 tokens] level
  int32_t* sum;           // [2][4][64] integer scores of the rows in flight

  CodeScratch(ScratchArena& arena, unsigned d_k, unsigned d_v)
      : key_planes(arena.take<uint8_t>(size_t{32} * d_k)),
        value_planes(arena.take<uint8_t>(size_t{32} * d_v)),
        key_levels(arena.take<uint8_t>(64)),
        value_levels(arena.take<uint8_t>(64)),
        query(arena.take<int8_t>(size_t{kMaxRows} * d_k)),
        sketch_query(arena.take<int8_t>(size_t{kMaxRows} * d_k)),
        query_factor(arena.take<float>(kMaxRows)),
        sketch_factor(arena.take<float>(kMaxRows)),
        query_offset(arena.take<int32_t>(kMaxRows)),
        sketch_sum(arena.take<int32_t>(kMaxRows)),
        mean_score(arena.take<float>(kMaxRows)),
        key(arena.take<uint8_t>(size_t{64} * d_k)),
        sign(arena.take<uint8_t>(size_t{64} * d_k)),
        value(arena.take<int8_t>(size_t{64} * d_v)),
        sum(arena.take<int32_t>(2 * 4 * 64)) {}
};

// fp16 rows: the codec f16, and exact rows beside codes. Everything is fp32.
struct HalfScratch {
  float* query;  // [kMaxRows][head_dim_k], scaled
  uint8_t* key_rows;    // [64][head_dim_k] fp16, of exact rows that are not one after another
  uint8_t* value_rows;  // [64][head_dim_v]

  HalfScratch(ScratchArena& arena, unsigned d_k, unsigned d_v)
      : query(arena.take<float>(size_t{kMaxRows} * d_k)),
        key_rows(arena.take<uint8_t>(size_t{64} * d_k * 2)),
        value_rows(arena.take<uint8_t>(size_t{64} * d_v * 2)) {}
};

// Which of the newest cells each mask row attends exactly.
struct WindowScratch {
  static constexpr unsigned kMost = KVT_MAX_RECENT + KVT_MAX_EXACT;
  uint32_t* entry;  // [kMaxRows][kMost] indices into recent_cells: newest first, then the pinned ones
  uint32_t* count;  // [kMaxRows]

  explicit WindowScratch(ScratchArena& arena)
      : entry(arena.take<uint32_t>(size_t{kMaxRows} * kMost)), count(arena.take<uint32_t>(kMaxRows)) {}
};

inline constexpr int kLevelOffset = 64;  // makes levels unsigned for the u8 x s8 products

}  // namespace kvt::cpu

#endif
