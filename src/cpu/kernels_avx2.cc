// AVX2 + FMA + F16C: kernels_256.h with the products of AVX2.
#include "cpu/kernels_256.h"

namespace kvt::cpu {
namespace {

// Pair sums of u8 x s8 products meet in int16 lanes, which the queries' and weights' bounds keep from saturating, then widen.
struct DotAvx2 {
  static __m256i narrow(__m256i total, __m256i u, __m256i s) { return _mm256_add_epi16(total, _mm256_maddubs_epi16(u, s)); }
  static __m256i widen(__m256i total) { return _mm256_madd_epi16(total, _mm256_set1_epi16(1)); }
  static __m256i pair(__m256i total, __m256i u0, __m256i s0, __m256i u1, __m256i s1) {
    return _mm256_add_epi32(total, widen(narrow(_mm256_maddubs_epi16(u0, s0), u1, s1)));
  }
  static __m256i quad(__m256i total, __m256i u0, __m256i s0, __m256i u1, __m256i s1, __m256i u2, __m256i s2, __m256i u3, __m256i s3) {
    const __m256i a = narrow(_mm256_maddubs_epi16(u0, s0), u1, s1), b = narrow(_mm256_maddubs_epi16(u2, s2), u3, s3);
    return _mm256_add_epi32(total, widen(_mm256_add_epi16(a, b)));
  }
};
using Avx2 = Kernels256<DotAvx2>;

}  // namespace

const KernelTable kKernelsAvx2 = make_table<Avx2>("avx2");

}  // namespace kvt::cpu
