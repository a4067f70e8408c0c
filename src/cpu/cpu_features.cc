#include "cpu/cpu_features.h"

namespace kvt::cpu {

CpuFeatures detect_cpu_features() {
  CpuFeatures features;
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();  // asks cpuid and xgetbv
  features.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                  __builtin_cpu_supports("f16c");
  features.avx512 = features.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
#endif
  return features;
}

}  // namespace kvt::cpu
