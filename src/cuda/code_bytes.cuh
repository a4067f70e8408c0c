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

// A level is a sum of parts that are each looked up by three bits, and that bit 3 of the selector can remove: of the subset's
// bits one adds a difference to the level of the other. For keys the difference that z0 makes is a function of m and z1, four
// bits; as the levels are symmetric about zero it is the same for the complement of all four, so that three parities tell it.
//
// The ALU pipe is what the trellis codec is short of (bit operations and permutes share it at half rate), so shifts by 16
// are products and some joins are additions, which the multiplier can do.
struct K4v3Codes {
  static constexpr bool kSketch = false, kOffsetKeys = true, kTrellis = true;
  static constexpr int kKeyTable = 6, kValueTable = 4;
  static constexpr uint32_t kBit2 = 0x44444444u;

  static constexpr int kXor3 = 0xf0 ^ 0xcc ^ 0xaa, kNotXor3 = ~kXor3 & 0xff;
  __device__ static __forceinline__ uint32_t not_and(uint32_t x, uint32_t mask) { return bit_logic<~0xf0 & 0xcc>(x, mask, 0); }

  // x >> 16 as a dot product of 16-bit halves: (x >> 16) * 1 + (x & 0xffff) * 0.
  __device__ static __forceinline__ uint32_t high_half(uint32_t x) { return __dp2a_lo(x, 0x0100u, 0u); }

  // Complements of the trellis bits, bit 3 of the nibbles, of the chain's elements `steps` before line i. Nibbles rotate where
  // the chain wraps.
  template <int kLines>
  __device__ static __forceinline__ uint32_t not_bits(const uint32_t (&w)[kLines], int i, int steps) {
    int at = i - steps, wraps = 0;
    while (at < 0) {
      at += kLines;
      ++wraps;
    }
    const uint32_t bits = not_and(w[at], kBit3);
    return wraps == 0 ? bits : __funnelshift_l(bits, bits, 4 * wraps);
  }

  // table[0..1]: levels of z = 0 by m, plus 64; [2..3]: what z1 adds if z0 = 0, by ~m; [4..5]: what z0 adds, by the parities
  // of neighbours in z1, m.
  template <int kLines>
  __device__ static __forceinline__ void keys(const uint32_t (&w)[kLines], int i, const uint32_t (&table)[6], uint32_t& b0,
                                              uint32_t& b1) {
    const uint32_t m = w[i] & kLow3;
    const uint32_t not_z1_m = bit_logic<kNotXor3>(w[i], not_bits(w, i, 1), not_bits(w, i, 3));
    const uint32_t by_z0 = bit_logic<(0xf0 ^ 0xcc) & 0xaa>(not_z1_m, not_z1_m >> 1, kLow3) + not_bits(w, i, 2);
    b0 = sum_parts(table, m, not_z1_m, by_z0);
    b1 = sum_parts(table, high_half(m), high_half(not_z1_m), high_half(by_z0));
  }
  __device__ static __forceinline__ uint32_t sum_parts(const uint32_t (&table)[6], uint32_t m, uint32_t not_z1_m,
                                                       uint32_t by_z0) {
    return byte_permute(table[0], table[1], m) + byte_permute(table[2], table[3], not_z1_m) +
           byte_permute(table[4], table[5], by_z0);
  }
  // y: codes; p1, p2, p3: those of the three elements before. Trellis bits are bit 2; bit 3 of any of them is arbitrary.
  // table[0..1]: levels of z0 = 0 by z1, m; [2..3]: what z0 adds.
  __device__ static __forceinline__ void values(uint32_t y, uint32_t p1, uint32_t p2, uint32_t p3, const uint32_t (&table)[4],
                                                uint32_t& b0, uint32_t& b1) {
    const uint32_t z1_m = bit_logic<kXor3>(y & kLow3, not_and(p1, kBit2), not_and(p3, kBit2)), by_z0 = not_and(p2, kBit2) * 2 + z1_m;
    b0 = byte_permute(table[0], table[1], z1_m) + byte_permute(table[2], table[3], by_z0);
    b1 = byte_permute(table[0], table[1], high_half(z1_m)) + byte_permute(table[2], table[3], high_half(by_z0));
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

// Subgroup k = 3 of a value line from bit 3 of the three stored ones.
__device__ __forceinline__ uint32_t fourth_subgroup(uint32_t x0, uint32_t x1, uint32_t x2) {
  return ((x0 >> 3) & 0x11111111u) | ((x1 >> 2) & 0x22222222u) | ((x2 >> 1) & 0x44444444u);
}

}  // namespace
}  // namespace kvt::cuda

#endif
