// The kernel tables of this machine.
#pragma once

#include <map>
#include <memory>
#include <new>

#include "cpu/kernel_select.h"
#include "fuzz_input.h"

namespace kvt_fuzz {

struct Tables {
  const kvt::cpu::KernelTable* reference = kvt::cpu::find_kernels("scalar");
  std::vector<const kvt::cpu::KernelTable*> others;  // the reference, where there is no other
};

// Looked up once: in a virtual machine each cpuid costs as much as an execution.
inline const Tables& tables() {
  static const Tables found = [] {
    Tables t;
    for (const char* name : {"avx2", "avxvnni", "avx512", "neon"}) {
      if (const kvt::cpu::KernelTable* kernels = kvt::cpu::find_kernels(name)) t.others.push_back(kernels);
    }
    if (t.others.empty()) t.others.push_back(t.reference);
    return t;
  }();
  return found;
}

// One table of those that are compared with the reference: an execution that ran all would cost as many times as much.
inline const kvt::cpu::KernelTable* other_table(uint32_t choice) { return tables().others[choice % tables().others.size()]; }

// Memory for kvt_attend_thread, aligned, of exactly this size on the heap and its first 64 bytes zero at first. Kept for the executions to
// come: mapping it anew takes longer than the attention of a page.
inline uint8_t* workspace(size_t bytes) {
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  static std::map<size_t, std::unique_ptr<uint8_t, Free>> kept;
  std::unique_ptr<uint8_t, Free>& memory = kept[bytes];
  if (memory == nullptr) {
    memory.reset(static_cast<uint8_t*>(::operator new(bytes, std::align_val_t{64})));
    std::memset(memory.get(), 0, 64);
  }
  return memory.get();
}

// kvt_attend by one thread.
inline kvt_status attend(const kvt_codec* codec, const kvt_attention& a) {
  const size_t bytes = kvt_attend_workspace_bytes(codec, &a, 1);
  return bytes == 0 ? KVT_ERROR_INVALID_ARGUMENT : kvt_attend_thread(codec, &a, workspace(bytes), 0, 1);
}

}  // namespace kvt_fuzz
