// What processor and operating system offer together.
#ifndef KVT_CPU_CPU_FEATURES_H
#define KVT_CPU_CPU_FEATURES_H

namespace kvt::cpu {

struct CpuFeatures {
  bool avx2 = false;     // AVX2, FMA, F16C, BMI2, and ymm state saved by the system
  bool avxvnni = false;  // also AVX-VNNI: vpdpbusd on ymm registers
  bool avx512 = false;   // also AVX-512 F, BW, DQ, VL, VBMI, VNNI, and zmm state saved
  bool neon = false;     // AArch64 with the dot product extension
};

CpuFeatures detect_cpu_features();

}  // namespace kvt::cpu

#endif
