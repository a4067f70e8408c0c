#include "host_ggml.h"

#include <dlfcn.h>

#include <cstring>

#include "layout_check.h"

namespace kvt::plugin {
namespace {

HostGgml g_host;

// dlsym in the library that holds `address` and in the libraries that it needs, then in the whole program.
class SymbolSource {
 public:
  explicit SymbolSource(const void* address) {
    Dl_info info{};
    if (dladdr(address, &info) != 0 && info.dli_fname != nullptr) {
      library_ = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);  // NULL for the executable itself
    }
  }
  ~SymbolSource() {
    if (library_ != nullptr) dlclose(library_);
  }
  SymbolSource(const SymbolSource&) = delete;
  SymbolSource& operator=(const SymbolSource&) = delete;

  void* find(const char* name) const {
    void* symbol = library_ != nullptr ? dlsym(library_, name) : nullptr;
    return symbol != nullptr ? symbol : dlsym(RTLD_DEFAULT, name);
  }

 private:
  void* library_ = nullptr;
};

// Operation numbers move between versions; names do not. The scan ends with the last name found, and CUSTOM is among the last
// operations of every version, so it does not run past the host's table.
bool find_op_numbers(OpNumbers* op, std::string* why_not) {
  struct Wanted {
    const char* name;
    enum ggml_op* number;
    bool found;
  };
  Wanted wanted[] = {{"NONE", &op->none, false},
                     {"VIEW", &op->view, false},
                     {"RESHAPE", &op->reshape, false},
                     {"PERMUTE", &op->permute, false},
                     {"TRANSPOSE", &op->transpose, false},
                     {"SET_ROWS", &op->set_rows, false},
                     {"FLASH_ATTN_EXT", &op->flash_attn_ext, false},
                     {"CUSTOM", &op->custom, false}};
  size_t n_missing = sizeof(wanted) / sizeof(wanted[0]);
  for (int i = 0; i < GGML_OP_COUNT && n_missing > 0; ++i) {
    const char* name = g_host.ggml_op_name(static_cast<enum ggml_op>(i));
    for (Wanted& w : wanted) {
      if (!w.found && name != nullptr && std::strcmp(w.name, name) == 0) {
        *w.number = static_cast<enum ggml_op>(i);
        w.found = true;
        --n_missing;
      }
    }
  }
  for (const Wanted& w : wanted) {
    if (!w.found) {
      *why_not = std::string("the host's ggml ") + g_host.ggml_version() + " has no operation " + w.name;
      return false;
    }
  }
  return true;
}

constexpr const char* kWhatWorks = "use llama.cpp with ggml 0.20 to 0.26 (backend API 2 or 3), for example llama.cpp b11434";

}  // namespace

const HostGgml& host() { return g_host; }

bool host_ggml_connect(const void* address_in_host, std::string* why_not) {
  const SymbolSource symbols(address_in_host);
#define KVT_FIND(name)                                                                 \
  g_host.name = reinterpret_cast<decltype(&::name)>(symbols.find(#name));              \
  if (g_host.name == nullptr) {                                                        \
    *why_not = std::string("the host's ggml does not offer " #name "; ") + kWhatWorks; \
    return false;                                                                      \
  }
  KVT_HOST_FUNCTIONS(KVT_FIND)
#undef KVT_FIND
  g_host.ggml_backend_buft_alloc_buffer_n =
      reinterpret_cast<decltype(&::ggml_backend_buft_alloc_buffer_n)>(symbols.find("ggml_backend_buft_alloc_buffer_n"));

  // Every registered backend states the API version of the ggml that it was accepted by; the CPU's is always there.
  ggml_backend_dev_t cpu = g_host.ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  if (cpu == nullptr || cpu->reg == nullptr) {
    *why_not = "the host has no CPU backend; install or load ggml's CPU backend first";
    return false;
  }
  g_host.api_version = cpu->reg->api_version;
  const bool has_alloc_n = g_host.ggml_backend_buft_alloc_buffer_n != nullptr;
  const bool is_known = (g_host.api_version == 2 && !has_alloc_n) || (g_host.api_version == 3 && has_alloc_n);
  if (!is_known) {
    *why_not = "the host's ggml " + std::string(g_host.ggml_version()) + " has backend API " +
               std::to_string(g_host.api_version) + "; " + kWhatWorks;
    return false;
  }
  if (!find_op_numbers(&g_host.op, why_not)) return false;
  std::string difference;
  if (!check_layout(cpu, &difference)) {
    *why_not = "the host's ggml " + std::string(g_host.ggml_version()) + " lays out " + difference +
               " in another way than this build knows; " + kWhatWorks;
    return false;
  }
  return true;
}

}  // namespace kvt::plugin
