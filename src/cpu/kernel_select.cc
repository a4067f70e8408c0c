#include "cpu/kernel_select.h"

#include <cstdlib>
#include <cstring>

#include "cpu/cpu_features.h"

namespace kvt::cpu {
namespace {

struct Candidate {
  const KernelTable* table;
  bool available;
};

// Best first.
template <class Visitor>
void for_each_candidate(Visitor visit) {
  [[maybe_unused]] const CpuFeatures features = detect_cpu_features();
#ifdef KVT_HAVE_AVX512
  visit(Candidate{&kKernelsAvx512, features.avx512});
#endif
#ifdef KVT_HAVE_AVXVNNI
  visit(Candidate{&kKernelsAvxVnni, features.avxvnni});
#endif
#ifdef KVT_HAVE_AVX2
  visit(Candidate{&kKernelsAvx2, features.avx2});
#endif
#ifdef KVT_HAVE_NEON
  visit(Candidate{&kKernelsNeon, features.neon});
#endif
  visit(Candidate{&kKernelsScalar, true});
}

const KernelTable* choose() {
  if (const char* forced = std::getenv("KVTURBO_ISA"); forced != nullptr && *forced != '\0') return find_kernels(forced);
  const KernelTable* best = nullptr;
  for_each_candidate([&](const Candidate& c) {
    if (best == nullptr && c.available) best = c.table;
  });
  return best;
}

}  // namespace

const KernelTable* find_kernels(const char* name) {
  const KernelTable* found = nullptr;
  for_each_candidate([&](const Candidate& c) {
    if (c.available && std::strcmp(c.table->name, name) == 0) found = c.table;
  });
  return found;
}

const KernelTable* process_kernels() {
  static const KernelTable* const chosen = choose();
  return chosen;
}

}  // namespace kvt::cpu
