// Shares one attention call among threads and merges their parts.
#ifndef KVT_CPU_ATTENTION_DRIVER_H
#define KVT_CPU_ATTENTION_DRIVER_H

#include "cpu/kernel_table.h"

namespace kvt::cpu {

struct AttentionCall {
  const SideLayout* key;
  const SideLayout* value;
  const KernelTable* kernels;
  const kvt_attention* args;
};

size_t attention_workspace_bytes(const AttentionCall& call, unsigned n_threads);

// workspace: 64-byte aligned, its counters zero (see kvt_attend_thread).
void attend_share(const AttentionCall& call, uint8_t* workspace, unsigned thread, unsigned n_threads);

}  // namespace kvt::cpu

#endif
