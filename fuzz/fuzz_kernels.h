// The kernel tables of this machine.
#pragma once

#include <map>
#include <memory>
#include <new>

#include "api/codec_object.h"
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

// One stream and kv head; rows of q, and of what will be out, lie one behind the other.
inline kvt_attention one_head(const kvt_codec* codec, const uint8_t* k_pages, const uint8_t* v_pages, uint32_t n_cells, const float* q,
                              uint32_t n_group, uint32_t n_queries) {
  kvt_attention a{};
  a.struct_size = sizeof a;
  a.n_streams = a.n_kv_heads = 1;
  a.n_group = n_group;
  a.n_queries = n_queries;
  a.n_cells = n_cells;
  a.k_pages = k_pages;
  a.k_page_stride = codec->key.page_bytes;
  a.v_pages = v_pages;
  a.v_page_stride = codec->value.page_bytes;
  a.q = q;
  a.q_head_stride = codec->key.head_dim * sizeof(float);
  a.q_query_stride = n_group * a.q_head_stride;
  a.out_head_stride = codec->value.head_dim * sizeof(float);
  a.out_query_stride = n_group * a.out_head_stride;
  return a;
}

// kvt_attend by one thread.
inline kvt_status attend(const kvt_codec* codec, const kvt_attention& a) {
  const size_t bytes = kvt_attend_workspace_bytes(codec, &a, 1);
  return bytes == 0 ? KVT_ERROR_INVALID_ARGUMENT : kvt_attend_thread(codec, &a, workspace(bytes), 0, 1);
}

}  // namespace kvt_fuzz
