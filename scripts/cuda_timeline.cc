// What a process does on its GPU and when, for scripts/cuda_host.sh profile: a library that CUDA itself loads (CUDA_INJECTION64_PATH)
// and that has CUPTI note kernels, copies and calls of the runtime. At exit it writes them to KVT_TIMELINE, one a line, in the order of
// their beginning: begin and duration in nanoseconds, what, name.
#include <cupti.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

struct Entry {
  uint64_t begin, end;
  const char* what;
  const std::string* name;
};

std::mutex g_mutex;
std::vector<Entry> g_entries;
std::map<std::string, int> g_names;

const std::string* name_of(const char* name) { return &g_names.emplace(name != nullptr ? name : "?", 0).first->first; }

void note(const CUpti_Activity* record) {
  switch (record->kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
      const auto* kernel = reinterpret_cast<const CUpti_ActivityKernel10*>(record);
      g_entries.push_back({kernel->start, kernel->end, "kernel", name_of(kernel->name)});
      return;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
      const auto* copy = reinterpret_cast<const CUpti_ActivityMemcpy6*>(record);
      g_entries.push_back({copy->start, copy->end, "copy", name_of(("copy kind " + std::to_string(copy->copyKind)).c_str())});
      return;
    }
    case CUPTI_ACTIVITY_KIND_RUNTIME: {
      const auto* call = reinterpret_cast<const CUpti_ActivityAPI*>(record);
      const char* name = nullptr;
      cuptiGetCallbackName(CUPTI_CB_DOMAIN_RUNTIME_API, call->cbid, &name);
      g_entries.push_back({call->start, call->end, "call", name_of(name)});
      return;
    }
    default:
      return;
  }
}

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* size, size_t* max_records) {
  *size = size_t{8} << 20;
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, *size));
  *max_records = 0;
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid_size) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  CUpti_Activity* record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid_size, &record) == CUPTI_SUCCESS) note(record);
  std::free(buffer);
}

void write_all() {
  cuptiActivityFlushAll(1);
  const char* path = std::getenv("KVT_TIMELINE");
  FILE* file = path != nullptr ? std::fopen(path, "w") : nullptr;
  if (file == nullptr) return;
  const std::lock_guard<std::mutex> lock(g_mutex);
  std::sort(g_entries.begin(), g_entries.end(), [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
  for (const Entry& e : g_entries) {
    std::fprintf(file, "%llu %llu %s %s\n", static_cast<unsigned long long>(e.begin - g_entries[0].begin),
                 static_cast<unsigned long long>(e.end - e.begin), e.what, e.name->c_str());
  }
  std::fclose(file);
}

}  // namespace

extern "C" int InitializeInjection() {
  cuptiActivityRegisterCallbacks(give_buffer, take_buffer);
  for (const CUpti_ActivityKind kind : {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_RUNTIME}) {
    if (cuptiActivityEnable(kind) != CUPTI_SUCCESS) std::fprintf(stderr, "cuda_timeline: CUPTI does not note activities of kind %d\n", kind);
  }
  std::atexit(write_all);
  return 1;
}
