// Chooses the kernel table.
#ifndef KVT_CPU_KERNEL_SELECT_H
#define KVT_CPU_KERNEL_SELECT_H

#include "cpu/kernel_table.h"

namespace kvt::cpu {

// The table by that name if this build and this machine have it, else nullptr.
const KernelTable* find_kernels(const char* name);

// The table of this process, chosen at the first call: KVTURBO_ISA if set, else the best there is.
// nullptr if KVTURBO_ISA names one that is absent. Thread-safe.
const KernelTable* process_kernels();

}  // namespace kvt::cpu

#endif
