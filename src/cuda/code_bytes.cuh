// From the nibbles of a page (format.md 4) to operand bytes of the tensor cores, in registers. A word of a page holds eight
// codes; the low and the high half of it give one B register each.
//
// A table of 16 or 32 levels takes two or four byte permutes of eight entries. Its bytes are level + 64, so below 128, and bit
// 3 of a selector nibble makes a permute yield 0: the parts are simply added.
#ifndef KVT_CUDA_CODE_BYTES_CUH
#define KVT_CUDA_CODE_BYTES_CUH

#include "cuda/warp_mma.cuh"

namespace kvt::cuda {
namespace {

constexpr uint32_t kBit3 = 0x88888888u, kLow3 = 0x77777777u;

// Key lines that a lane reads of one token: line 4 i + lane % 4 in w[i]. They are one trellis chain.

struct HybridCodes {
  static constexpr bool kSketch = true, kOffsetKeys = false, kTrellis = false;
  static constexpr int kKeyTable = 2, kValueTable = 2;

  template <int kLines>
  __device__ static __forceinline__ void keys(const uint32_t (&w)[kLines], int i, const uint32_t (&table)[2], uint32_t& b0,
                                              uint32_t& b1) {
    const uint32_t codes = w[i] & kLow3;
    b0 = byte_permute(table[0], table[1], codes);
    b1 = byte_permute(table[0], table[1], codes >> 16);
  }
  __device__ static __forceinline__ void values(uint32_t y, uint32_t, uint32_t, uint32_t, const uint32_t (&table)[2],
                                                uint32_t& b0, uint32_t& b1) {
    const uint32_t codes = y & kLow3;
    b0 = byte_permute(table[0], table[1], codes);
    b1 = byte_permute(table[0], table[1], codes >> 16);
  }
  template <int N>
  __device__ static __forceinline__ void score(int (&d)[N], const uint32_t (&q)[N], uint32_t b0, uint32_t b1,
                                               const int (&c)[N]) {
    mma_s8_s8(d, q, b0, b1, c);
  }
  template <int N>
  __device__ static __forceinline__ void weigh(int (&d)[N], const uint32_t (&p)[N], uint32_t b0, uint32_t b1,
                                               const int (&c)[N]) {
    mma_u8_s8(d, p, b0, b1, c);
  }
};

struct Scalar43Codes {
  static constexpr bool kSketch = false, kOffsetKeys = true, kTrellis = false;
  static constexpr int kKeyTable = 4, kValueTable = 2;

  template <int kLines>
  __device__ static __forceinline__ void keys(const uint32_t (&w)[kLines], int i, const uint32_t (&table)[4], uint32_t& b0,
                                              uint32_t& b1) {
    const uint32_t low = w[i], high = low ^ kBit3;  // bit 3 of the code chooses the half of the table
    b0 = byte_permute(table[0], table[1], low) | byte_permute(table[2], table[3], high);
    b1 = byte_permute(table[0], table[1], low >> 16) | byte_permute(table[2], table[3], high >> 16);
  }
  __device__ static __forceinline__ void values(uint32_t y, uint32_t p1, uint32_t p2, uint32_t p3, const uint32_t (&table)[2],
                                                uint32_t& b0, uint32_t& b1) {
    HybridCodes::values(y, p1, p2, p3, table, b0, b1);
  }
  template <int N>
  __device__ static __forceinline__ void score(int (&d)[N], const uint32_t (&q)[N], uint32_t b0, uint32_t b1,
                                               const int (&c)[N]) {
    mma_s8_u8(d, q, b0, b1, c);
  }
  template <int N>
  __device__ static __forceinline__ void weigh(int (&d)[N], const uint32_t (&p)[N], uint32_t b0, uint32_t b1,
                                               const int (&c)[N]) {
    mma_u8_s8(d, p, b0, b1, c);
  }
};

// The ALU pipe is what the trellis codec is short of (bit operations and permutes share it at half rate), so shifts by 16
// are products and joins are additions, which the multiplier can do.
struct K4v3Codes {
  static constexpr bool kSketch = false, kOffsetKeys = true, kTrellis = true;
  static constexpr int kKeyTable = 8, kValueTable = 4;

  // x >> 16 as a dot product of 16-bit halves: (x >> 16) * 1 + (x & 0xffff) * 0.
  __device__ static __forceinline__ uint32_t high_half(uint32_t x) { return __dp2a_lo(x, 0x0100u, 0u); }

  // Line i of the chain, `steps` earlier: nibbles rotate where the chain wraps.
  template <int kLines>
  __device__ static __forceinline__ uint32_t earlier(const uint32_t (&w)[kLines], int i, int steps) {
    int at = i - steps, wraps = 0;
    while (at < 0) {
      at += kLines;
      ++wraps;
    }
    return wraps == 0 ? w[at] : __funnelshift_l(w[at], w[at], 4 * wraps);
  }

  // table[2 z], table[2 z + 1]: the levels of subset z by m. Trellis bits are bit 3 of the nibbles.
  template <int kLines>
  __device__ static __forceinline__ void keys(const uint32_t (&w)[kLines], int i, const uint32_t (&table)[8], uint32_t& b0,
                                              uint32_t& b1) {
    const uint32_t z1 = w[i] ^ earlier(w, i, 1) ^ earlier(w, i, 3);
    const uint32_t not_z0 =
        bit_select(kLow3, w[i], earlier(w, i, 2));  // m, and bit 3 set where z0 = 1: 0 from a table of z0 = 0
    const uint32_t is_z0 = not_z0 ^ kBit3;
    // Nibble j: j, or 4 + j where z1 = 1. (For the high half of the word too.)
    const uint32_t pick = ((z1 >> 1) & 0x44444444u) | 0x32103210u;
    b0 = pick_z1(table, not_z0, is_z0, pick);
    b1 = pick_z1(table, high_half(not_z0), high_half(is_z0), high_half(pick));
  }
  __device__ static __forceinline__ uint32_t pick_z1(const uint32_t (&table)[8], uint32_t not_z0, uint32_t is_z0,
                                                     uint32_t pick) {
    return byte_permute(byte_permute(table[0], table[1], not_z0) + byte_permute(table[2], table[3], is_z0),
                        byte_permute(table[4], table[5], not_z0) + byte_permute(table[6], table[7], is_z0), pick);
  }
  // y: codes; p1, p2, p3: those of the three elements before. Trellis bits are bit 2; bit 3 of any of them is arbitrary.
  // table[2 z1], table[2 z1 + 1]: levels by z0 << 2 | m.
  __device__ static __forceinline__ void values(uint32_t y, uint32_t p1, uint32_t p2, uint32_t p3, const uint32_t (&table)[4],
                                                uint32_t& b0, uint32_t& b1) {
    const uint32_t z1 = (y ^ p1 ^ p3) << 1;
    const uint32_t s0 = bit_select(kLow3, bit_select(0x33333333u, y, p2), z1), s1 = s0 ^ kBit3;
    b0 = byte_permute(table[0], table[1], s0) + byte_permute(table[2], table[3], s1);
    b1 = byte_permute(table[0], table[1], high_half(s0)) + byte_permute(table[2], table[3], high_half(s1));
  }
  template <int N>
  __device__ static __forceinline__ void score(int (&d)[N], const uint32_t (&q)[N], uint32_t b0, uint32_t b1,
                                               const int (&c)[N]) {
    mma_s8_u8(d, q, b0, b1, c);
  }
  template <int N>
  __device__ static __forceinline__ void weigh(int (&d)[N], const uint32_t (&p)[N], uint32_t b0, uint32_t b1,
                                               const int (&c)[N]) {
    mma_u8_u8(d, p, b0, b1, c);
  }
};

// Subgroup k = 3 of a value line from bit 3 of the three stored ones.
__device__ __forceinline__ uint32_t fourth_subgroup(uint32_t x0, uint32_t x1, uint32_t x2) {
  return ((x0 >> 3) & 0x11111111u) | ((x1 >> 2) & 0x22222222u) | ((x2 >> 1) & 0x44444444u);
}

}  // namespace
}  // namespace kvt::cuda

#endif
