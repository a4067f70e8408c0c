// From the nibbles of a page (format.md 4) to operand bytes of the tensor cores, in registers. A word of a page holds eight
// codes; the low and the high half of it give one B register each.
//
// A byte permute looks up four of eight entries. Bit 3 of a selector nibble makes it yield 0 if the entry is below 128: larger
// tables are joined from parts.
#ifndef KVT_CUDA_CODE_BYTES_CUH
#define KVT_CUDA_CODE_BYTES_CUH

#include "cuda/warp_mma.cuh"

namespace kvt::cuda {
namespace {

constexpr uint32_t kBit3 = 0x88888888u, kLow3 = 0x77777777u;

// Subgroup k = 3 of a value line, or line 3 of a run of key lines, from bit 3 of the three stored ones.
__device__ __forceinline__ uint32_t fourth_subgroup(uint32_t x0, uint32_t x1, uint32_t x2) {
  return ((x0 >> 3) & 0x11111111u) | ((x1 >> 2) & 0x22222222u) | ((x2 >> 1) & 0x44444444u);
}

// The four subgroups of a value line from its stored words. Bits above a code are arbitrary.
__device__ __forceinline__ void value_subgroups(const uint32_t (&x)[2], uint32_t (&y)[4]) {
  y[0] = x[0];
  y[1] = x[0] >> 2;
  y[2] = x[1];
  y[3] = x[1] >> 2;
}
__device__ __forceinline__ void value_subgroups(const uint32_t (&x)[3], uint32_t (&y)[4]) {
  y[0] = x[0];
  y[1] = x[1];
  y[2] = x[2];
  y[3] = fourth_subgroup(x[0], x[1], x[2]);
}
__device__ __forceinline__ void value_subgroups(const uint32_t (&x)[4], uint32_t (&y)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) y[k] = x[k];
}

// Line 4 i + c of a key tile for two neighbouring tokens: in word i of each; with 8 bits its halves, in words 2 i and 2 i + 1. at: the
// tokens' words in the tile's first line.
template <int kBits, int kWords>
__device__ __forceinline__ void load_keys(const char* at, int i, int c, uint32_t (&first)[kWords], uint32_t (&second)[kWords]) {
  const auto stored = [&](int line) { return *reinterpret_cast<const uint2*>(at + line * 64); };
  if constexpr (kBits == 8) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint2 w = stored(2 * (4 * i + c) + half);
      first[2 * i + half] = w.x;
      second[2 * i + half] = w.y;
    }
  } else if constexpr (kBits == 4) {
    const uint2 w = stored(4 * i + c);
    first[i] = w.x;
    second[i] = w.y;
  } else if constexpr (kBits == 3) {
    const uint2 a = stored(3 * i), b = stored(3 * i + 1), d = stored(3 * i + 2);
    const uint32_t x = fourth_subgroup(a.x, b.x, d.x), y = fourth_subgroup(a.y, b.y, d.y);
    first[i] = c == 0 ? a.x : c == 1 ? b.x : c == 2 ? d.x : x;
    second[i] = c == 0 ? a.y : c == 1 ? b.y : c == 2 ? d.y : y;
  } else {
    const uint2 w = stored(2 * i + c / 2);
    first[i] = w.x >> c % 2 * 2;
    second[i] = w.y >> c % 2 * 2;
  }
}

struct HybridCodes {
  static constexpr bool kSketch = true, kOffsetKeys = false, kTrellis = false, kManyRows = true;
  static constexpr int kKeyBits = 4, kValueBits = 3;
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
  static constexpr bool kSketch = false, kOffsetKeys = true, kTrellis = false, kManyRows = true;
  static constexpr int kKeyBits = 4, kValueBits = 3;
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

// The ALU pipe is what the trellis codecs are short of (bit operations and permutes share it at half rate), so shifts by 16
// are products and some joins are additions, which the multiplier can do.
//
// x >> 16 as a dot product of 16-bit halves: (x >> 16) * 1 + (x & 0xffff) * 0.
__device__ __forceinline__ uint32_t high_half(uint32_t x) { return __dp2a_lo(x, 0x0100u, 0u); }

// Levels of trellis codes of kBits bits, signed. A level is a sum of parts that are each looked up by three bits, and that bit 3 of
// the selector can remove: of the subset's bits one adds a difference to the level of the other. The first part decides the sign,
// so that a sum never carries from one byte to the next.
//
// bytes(y, n1, n2, n3): y: codes, the bits above them arbitrary; n1, n2, n3: not_trellis_bits() of the three elements before.
constexpr uint32_t kXor3 = 0xf0 ^ 0xcc ^ 0xaa, kNotXor3 = ~kXor3 & 0xff;
template <int kBits>
__device__ __forceinline__ uint32_t not_trellis_bits(uint32_t y) {
  return bit_logic<~0xf0 & 0xcc>(y, 0x11111111u << (kBits - 1), 0);
}

template <int kBits>
struct TrellisLevels;

// Table: level by z0, z1, m.
template <>
struct TrellisLevels<2> {
  static constexpr int kTable = 2;
  __device__ static __forceinline__ void bytes(uint32_t y, uint32_t n1, uint32_t n2, uint32_t n3, const uint32_t (&table)[2], uint32_t& b0,
                                               uint32_t& b1) {
    const uint32_t code = bit_logic<kXor3>(y & 0x33333333u, n1, n3) + 2 * (n2 ^ 0x22222222u);
    b0 = byte_permute(table[0], table[1], code);
    b1 = byte_permute(table[0], table[1], high_half(code));
  }
};

// Tables: level of z0 = 0 by z1, m; what z0 adds, by the same.
template <>
struct TrellisLevels<3> {
  static constexpr int kTable = 4;
  __device__ static __forceinline__ void bytes(uint32_t y, uint32_t n1, uint32_t n2, uint32_t n3, const uint32_t (&table)[4], uint32_t& b0,
                                               uint32_t& b1) {
    const uint32_t z1_m = bit_logic<kXor3>(y & kLow3, n1, n3), by_z0 = n2 * 2 + z1_m;
    b0 = byte_permute(table[0], table[1], z1_m) + byte_permute(table[2], table[3], by_z0);
    b1 = byte_permute(table[0], table[1], high_half(z1_m)) + byte_permute(table[2], table[3], high_half(by_z0));
  }
};

// Tables: level of z = 0 by m; what z1 adds if z0 = 0, by ~m; what z0 adds. This is a function of z1 and m, four bits; as levels are
// symmetric about zero it is the same for the complement of all four, so that the parities of neighbours among them tell it.
template <>
struct TrellisLevels<4> {
  static constexpr int kTable = 6;
  __device__ static __forceinline__ void bytes(uint32_t y, uint32_t n1, uint32_t n2, uint32_t n3, const uint32_t (&table)[6], uint32_t& b0,
                                               uint32_t& b1) {
    const uint32_t m = y & kLow3, not_z1_m = bit_logic<kNotXor3>(y, n1, n3);
    const uint32_t by_z0 = bit_logic<(0xf0 ^ 0xcc) & 0xaa>(not_z1_m, not_z1_m >> 1, kLow3) + n2;
    b0 = sum_parts(table, m, not_z1_m, by_z0);
    b1 = sum_parts(table, high_half(m), high_half(not_z1_m), high_half(by_z0));
  }
  __device__ static __forceinline__ uint32_t sum_parts(const uint32_t (&table)[6], uint32_t m, uint32_t not_z1_m, uint32_t by_z0) {
    return byte_permute(table[0], table[1], m) + byte_permute(table[2], table[3], not_z1_m) + byte_permute(table[4], table[5], by_z0);
  }
};

// Keys of 2 to 4 bits, or 8 bits: bytes that need no table.
template <int kKeyBits_, int kValueBits_>
struct TrellisCodes {
  static constexpr int kKeyBits = kKeyBits_, kValueBits = kValueBits_;
  // kManyRows: kernels for 16 rows a warp too, which cost time to compile: for the default codec.
  static constexpr bool kSketch = false, kOffsetKeys = kKeyBits == 8, kTrellis = true, kManyRows = kKeyBits == 4 && kValueBits == 3;
  using Key = TrellisLevels<kKeyBits == 8 ? 4 : kKeyBits>;
  using Value = TrellisLevels<kValueBits>;
  static constexpr int kKeyTable = Key::kTable, kValueTable = Value::kTable;

  // w: key lines that a lane reads of one token, a trellis chain.
  template <int kWords>
  __device__ static __forceinline__ void keys(const uint32_t (&w)[kWords], int i, const uint32_t (&table)[kKeyTable], uint32_t& b0,
                                              uint32_t& b1) {
    if constexpr (kKeyBits == 8) {
      b0 = w[2 * i];
      b1 = w[2 * i + 1];
    } else {
      Key::bytes(w[i], earlier(w, i, 1), earlier(w, i, 2), earlier(w, i, 3), table, b0, b1);
    }
  }
  // Complements of the trellis bits `steps` before line i. Nibbles rotate where the chain wraps.
  template <int kLines>
  __device__ static __forceinline__ uint32_t earlier(const uint32_t (&w)[kLines], int i, int steps) {
    int at = i - steps, wraps = 0;
    while (at < 0) {
      at += kLines;
      ++wraps;
    }
    const uint32_t bits = not_trellis_bits<kKeyBits>(w[at]);
    return wraps == 0 ? bits : __funnelshift_l(bits, bits, 4 * wraps);
  }
  // y: codes; p1, p2, p3: those of the three elements before.
  __device__ static __forceinline__ void values(uint32_t y, uint32_t p1, uint32_t p2, uint32_t p3, const uint32_t (&table)[kValueTable],
                                                uint32_t& b0, uint32_t& b1) {
    Value::bytes(y, not_trellis_bits<kValueBits>(p1), not_trellis_bits<kValueBits>(p2), not_trellis_bits<kValueBits>(p3), table, b0, b1);
  }
  template <int N>
  __device__ static __forceinline__ void score(int (&d)[N], const uint32_t (&q)[N], uint32_t b0, uint32_t b1,
                                               const int (&c)[N]) {
    if constexpr (kOffsetKeys) {
      mma_s8_u8(d, q, b0, b1, c);
    } else {
      mma_s8_s8(d, q, b0, b1, c);
    }
  }
  template <int N>
  __device__ static __forceinline__ void weigh(int (&d)[N], const uint32_t (&p)[N], uint32_t b0, uint32_t b1,
                                               const int (&c)[N]) {
    mma_u8_s8(d, p, b0, b1, c);
  }
};

}  // namespace
}  // namespace kvt::cuda

#endif
