// Memory that runs out on demand, for one shared library of the process: its calls of malloc, calloc, realloc, aligned_alloc, posix_memalign
// and mmap are counted, and the one with a chosen number, or all from it on, fail. Include in one file of a program.
#pragma once

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace kvt_test::failing_memory {

inline uintptr_t g_begin = 0, g_end = 0;  // the library's code
inline std::atomic<long> g_n_calls{0};
inline std::atomic<long> g_first{0}, g_last{-1};  // numbers of the calls that fail

inline bool fails(const void* caller) {
  const auto at = reinterpret_cast<uintptr_t>(caller);
  if (at < g_begin || at >= g_end) return false;
  const long number = g_n_calls.fetch_add(1);
  return number >= g_first && number <= g_last;
}

// The library whose file name contains `name`. False if it is not loaded.
inline bool watch(const char* name) {
  struct Search {
    const char* name;
    bool is_found;
  } search{name, false};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* argument) {
        auto* s = static_cast<Search*>(argument);
        if (std::strstr(info->dlpi_name, s->name) == nullptr) return 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const ElfW(Phdr)& p = info->dlpi_phdr[i];
          if (p.p_type != PT_LOAD || (p.p_flags & PF_X) == 0) continue;
          g_begin = info->dlpi_addr + p.p_vaddr;
          g_end = g_begin + p.p_memsz;
        }
        s->is_found = true;
        return 1;
      },
      &search);
  return search.is_found;
}

// From now on calls are counted from 0, and those with the numbers first .. last fail.
inline void arm(long first, long last) {
  g_first = first;
  g_last = last;
  g_n_calls = 0;
}
inline void disarm() { g_last = -1; }
inline long n_calls() { return g_n_calls; }

}  // namespace kvt_test::failing_memory

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

#define KVT_FAILS kvt_test::failing_memory::fails(__builtin_return_address(0))
void* malloc(size_t size) { return KVT_FAILS ? nullptr : __libc_malloc(size); }
void* calloc(size_t n, size_t size) { return KVT_FAILS ? nullptr : __libc_calloc(n, size); }
void* realloc(void* old, size_t size) { return KVT_FAILS ? nullptr : __libc_realloc(old, size); }
void* aligned_alloc(size_t alignment, size_t size) { return KVT_FAILS ? nullptr : __libc_memalign(alignment, size); }
int posix_memalign(void** memory, size_t alignment, size_t size) {
  if (KVT_FAILS) return ENOMEM;
  *memory = __libc_memalign(alignment, size);
  return *memory != nullptr ? 0 : ENOMEM;
}
void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) {
  if (KVT_FAILS) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, file, offset));
}
#undef KVT_FAILS
}
