// AVX-VNNI, the 256-bit vpdpbusd of processors without AVX-512 (Alder Lake and later): kernels_256.h with its products, which add up
// in int32 lanes at once.
#include "cpu/kernels_256.h"

namespace kvt::cpu {
namespace {

struct DotAvxVnni {
  static __m256i narrow(__m256i total, __m256i u, __m256i s) { return _mm256_dpbusd_avx_epi32(total, u, s); }
  static __m256i widen(__m256i total) { return total; }
  static __m256i pair(__m256i total, __m256i u0, __m256i s0, __m256i u1, __m256i s1) { return narrow(narrow(total, u0, s0), u1, s1); }
  static __m256i quad(__m256i total, __m256i u0, __m256i s0, __m256i u1, __m256i s1, __m256i u2, __m256i s2, __m256i u3, __m256i s3) {
    return pair(pair(total, u0, s0, u1, s1), u2, s2, u3, s3);
  }
};
using AvxVnni = Kernels256<DotAvxVnni>;

}  // namespace

const KernelTable kKernelsAvxVnni = make_table<AvxVnni>("avxvnni");

}  // namespace kvt::cpu
