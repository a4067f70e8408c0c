// Tensor core and bit instructions that C++ has no words for.
#ifndef KVT_CUDA_WARP_MMA_CUH
#define KVT_CUDA_WARP_MMA_CUH

#include <cstdint>

namespace kvt::cuda {
namespace {

// Four bytes of {b, a} by the low four nibbles of the selector. Bit 3 of a nibble replicates the byte's sign instead: 0 for
// bytes below 128. (__byte_perm may mask that bit.)
__device__ __forceinline__ uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t d;
  asm("prmt.b32 %0,%1,%2,%3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
  return d;
}
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
// Any function of three bits, bit by bit: kTable is its value for a = 0xf0, b = 0xcc, c = 0xaa. In words of its own, so that the
// compiler, which knows such terms by heart, does not split them up again.
template <int kTable>
__device__ __forceinline__ uint32_t bit_logic(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0,%1,%2,%3,%4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(kTable));
  return d;
}
// Keeps a kernel parameter in a register: the compiler would fetch or move it again and again, but it cannot look through a
// shuffle.
__device__ __forceinline__ uint32_t keep_in_register(uint32_t x) { return __shfl_sync(0xffffffffu, x, 0); }

// D = A B + C over 32 dims or tokens: rows of A are query rows, columns of B eight tokens or eight dims. Lane (r = lane / 4, c
// = lane % 4) holds of B the bytes k = 4c .. 4c + 3 of column r in b0, and the same of k + 16 in b1; of D row r (and r + 8),
// columns 2c and 2c + 1.
//   kRowBlocks = 1: eight rows, as two m8n8k16: no empty rows to hold.   a = {k, k + 16}
//   kRowBlocks = 2: sixteen rows, one m16n8k32.                         a = {k, k of row + 8, k + 16, k + 16 of row + 8}
#define KVT_INTEGER_MMA(NAME, A, B)                                                                                     \
  __device__ __forceinline__ void NAME(int(&d)[2], const uint32_t(&a)[2], uint32_t b0, uint32_t b1, const int(&c)[2]) { \
    int t0, t1;                                                                                                         \
    asm("mma.sync.aligned.m8n8k16.row.col.s32." A "." B ".s32 {%0,%1},{%2},{%3},{%4,%5};"                               \
        : "=r"(t0), "=r"(t1)                                                                                            \
        : "r"(a[0]), "r"(b0), "r"(c[0]), "r"(c[1]));                                                                    \
    asm("mma.sync.aligned.m8n8k16.row.col.s32." A "." B ".s32 {%0,%1},{%2},{%3},{%4,%5};"                               \
        : "=r"(d[0]), "=r"(d[1])                                                                                        \
        : "r"(a[1]), "r"(b1), "r"(t0), "r"(t1));                                                                        \
  }                                                                                                                     \
  __device__ __forceinline__ void NAME(int(&d)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1, const int(&c)[4]) { \
    asm("mma.sync.aligned.m16n8k32.row.col.s32." A "." B ".s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"  \
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])                                                                \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));    \
  }
KVT_INTEGER_MMA(mma_s8_s8, "s8", "s8")
KVT_INTEGER_MMA(mma_s8_u8, "s8", "u8")
KVT_INTEGER_MMA(mma_u8_s8, "u8", "s8")
KVT_INTEGER_MMA(mma_u8_u8, "u8", "u8")
#undef KVT_INTEGER_MMA

// An accumulator that starts here is, read as fp32, kMagicFloat + the integer sum, exact for sums below 2^22.
constexpr int kMagicBits = 0x4B400000;
constexpr float kMagicFloat = 12582912.0f;
__device__ __forceinline__ float integer_value(int accumulator) { return __int_as_float(accumulator) - kMagicFloat; }

// Without that subtraction: an accumulator that starts at kBias is, read as fp32, (kBias + the sum) * 2^-149, a denormal number: exact
// for sums above -kBias, which 64 weights of 255 times levels up to 63 do not reach. Its factor is multiplied by kBiasedFactor, the
// total by kBiasedUnit; a total has kBias times the sum of the factors too much. That costs precision by the ratio of kBias to a
// page's sum, some 30: five bits of 24.
constexpr int kBias = 1 << 20;
static_assert(64 * 255 * 63 < kBias);
constexpr float kBiasedFactor = 0x1p100f, kBiasedUnit = 0x1p49f;
__device__ __forceinline__ float biased_value(int accumulator) { return __int_as_float(accumulator); }

// fp16: sixteen rows, eight columns, k = 16.
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace
}  // namespace kvt::cuda

#endif
