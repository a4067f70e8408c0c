// A ggml that is loaded at run time, privately as Python's ctypes would (RTLD_LOCAL), for tests of the plug-in against several
// versions. Only public headers: the calls used here are the same in backend API 2 and 3.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "gguf.h"

namespace kvt_test {

#define KVT_TEST_GGML_FUNCTIONS(X)            \
  X(ggml_backend_alloc_ctx_tensors_from_buft) \
  X(ggml_backend_buffer_clear)                \
  X(ggml_backend_buffer_free)                 \
  X(ggml_backend_buffer_get_size)             \
  X(ggml_backend_buffer_name)                 \
  X(ggml_backend_dev_buffer_type)             \
  X(ggml_backend_dev_by_name)                 \
  X(ggml_backend_dev_by_type)                 \
  X(ggml_backend_dev_count)                   \
  X(ggml_backend_dev_init)                    \
  X(ggml_backend_dev_supports_op)             \
  X(ggml_backend_free)                        \
  X(ggml_backend_get_default_buffer_type)     \
  X(ggml_backend_graph_compute)               \
  X(ggml_backend_load)                        \
  X(ggml_backend_load_all_from_path)          \
  X(ggml_backend_reg_get_proc_address)        \
  X(ggml_backend_tensor_copy)                 \
  X(ggml_backend_tensor_get)                  \
  X(ggml_backend_tensor_memset)               \
  X(ggml_backend_tensor_set)                  \
  X(ggml_backend_unload)                      \
  X(ggml_build_forward_expand)                \
  X(ggml_cont)                                \
  X(ggml_flash_attn_ext)                      \
  X(ggml_flash_attn_ext_add_sinks)            \
  X(ggml_fp16_to_fp32)                        \
  X(ggml_fp32_to_fp16)                        \
  X(ggml_free)                                \
  X(ggml_gallocr_alloc_graph)                 \
  X(ggml_gallocr_free)                        \
  X(ggml_gallocr_new)                         \
  X(ggml_get_first_tensor)                    \
  X(ggml_get_next_tensor)                     \
  X(ggml_get_tensor)                          \
  X(ggml_get_type_traits)                     \
  X(ggml_init)                                \
  X(ggml_n_dims)                              \
  X(ggml_nbytes)                              \
  X(ggml_nelements)                           \
  X(ggml_new_graph)                           \
  X(ggml_new_tensor)                          \
  X(ggml_new_tensor_1d)                       \
  X(ggml_new_tensor_3d)                       \
  X(ggml_new_tensor_4d)                       \
  X(ggml_permute)                             \
  X(ggml_reshape_2d)                          \
  X(ggml_rope_inplace)                        \
  X(ggml_set_input)                           \
  X(ggml_set_name)                            \
  X(ggml_set_output)                          \
  X(ggml_set_rows)                            \
  X(ggml_tensor_overhead)                     \
  X(ggml_version)                             \
  X(ggml_view_2d)                             \
  X(ggml_view_3d)                             \
  X(ggml_view_4d)                             \
  X(gguf_add_tensor)                          \
  X(gguf_free)                                \
  X(gguf_init_empty)                          \
  X(gguf_init_from_file)                      \
  X(gguf_set_kv)                              \
  X(gguf_set_val_u32)                         \
  X(gguf_write_to_file)

struct Ggml {
#define KVT_DECLARE(name) decltype(&::name) name = nullptr;
  KVT_TEST_GGML_FUNCTIONS(KVT_DECLARE)
#undef KVT_DECLARE

  // Loads libggml.so and what it needs from a folder. Exits with CTest's code for "skipped" if there is none.
  explicit Ggml(const char* folder) {
    const std::string dir = folder != nullptr ? folder : "";
    void* library = nullptr;
    if (!dir.empty()) {
      dlopen((dir + "/libggml-base.so").c_str(), RTLD_NOW | RTLD_LOCAL);
      dlopen((dir + "/libggml-cpu.so").c_str(), RTLD_NOW | RTLD_LOCAL);
      library = dlopen((dir + "/libggml.so").c_str(), RTLD_NOW | RTLD_LOCAL);
    }
    if (library == nullptr) {
      std::printf("skipped: no libggml.so in TEST_GGML_DIR=%s\n", dir.c_str());
      std::exit(77);
    }
#define KVT_FIND(name)                                               \
  name = reinterpret_cast<decltype(&::name)>(dlsym(library, #name)); \
  if (name == nullptr) {                                             \
    std::printf("this ggml lacks %s\n", #name);                      \
    std::exit(1);                                                    \
  }
    KVT_TEST_GGML_FUNCTIONS(KVT_FIND)
#undef KVT_FIND
    // A ggml with loadable backends has no CPU backend at first.
    if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) ggml_backend_load_all_from_path(dir.c_str());
  }
};

}  // namespace kvt_test
