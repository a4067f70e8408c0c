// The ggml of the process that loaded us: its functions, its backend API version, its operation numbers.
//
// This folder is the only place that knows more of ggml than its public headers, and the only one that knows that there are
// several ggmls. Functions are looked up in the library that called ggml_backend_init, not linked: so one file loads into hosts
// with a shared, a static or a privately loaded (RTLD_LOCAL) ggml, and a host that lacks a function is refused with a line that
// says so instead of failing inside dlopen. Structures are used as the headers declare them once check_layout has compared them
// with what the host really does.
#ifndef KVT_PLUGIN_HOST_GGML_H
#define KVT_PLUGIN_HOST_GGML_H

#include <string>

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "ggml.h"

namespace kvt::plugin {

// Every ggml function that we call. All exist in backend API 2 and 3.
#define KVT_HOST_FUNCTIONS(X)         \
  X(ggml_backend_buffer_clear)        \
  X(ggml_backend_buffer_free)         \
  X(ggml_backend_buffer_get_base)     \
  X(ggml_backend_buffer_get_size)     \
  X(ggml_backend_buffer_init)         \
  X(ggml_backend_buffer_name)         \
  X(ggml_backend_buft_alloc_buffer)   \
  X(ggml_backend_buft_get_alignment)  \
  X(ggml_backend_buft_get_alloc_size) \
  X(ggml_backend_buft_get_max_size)   \
  X(ggml_backend_buft_name)           \
  X(ggml_backend_dev_by_type)         \
  X(ggml_backend_dev_count)           \
  X(ggml_backend_dev_get)             \
  X(ggml_backend_dev_init)            \
  X(ggml_backend_device_register)     \
  X(ggml_backend_event_free)          \
  X(ggml_backend_event_new)           \
  X(ggml_backend_free)                \
  X(ggml_backend_reg_count)           \
  X(ggml_backend_reg_get)             \
  X(ggml_backend_register)            \
  X(ggml_backend_synchronize)         \
  X(ggml_backend_tensor_get)          \
  X(ggml_backend_tensor_set)          \
  X(ggml_backend_unload)              \
  X(ggml_backend_view_init)           \
  X(ggml_build_forward_expand)        \
  X(ggml_custom_4d)                   \
  X(ggml_fp16_to_fp32_row)            \
  X(ggml_fp32_to_fp16_row)            \
  X(ggml_free)                        \
  X(ggml_graph_n_nodes)               \
  X(ggml_graph_next_uid)              \
  X(ggml_graph_node)                  \
  X(ggml_graph_size)                  \
  X(ggml_init)                        \
  X(ggml_nbytes)                      \
  X(ggml_new_graph_custom)            \
  X(ggml_new_tensor_2d)               \
  X(ggml_op_name)                     \
  X(ggml_set_name)                    \
  X(ggml_tensor_overhead)             \
  X(ggml_threadpool_params_default)   \
  X(ggml_type_name)                   \
  X(ggml_version)                     \
  X(ggml_view_2d)

// Numbers of the operations that we treat, by the host's own count.
struct OpNumbers {
  enum ggml_op none, view, reshape, permute, transpose, set_rows, flash_attn_ext, custom;
};

struct HostGgml {
  int api_version;  // of the backend interface: 2 or 3
  OpNumbers op;

#define KVT_DECLARE(name) decltype(&::name) name;
  KVT_HOST_FUNCTIONS(KVT_DECLARE)
#undef KVT_DECLARE

  // Backend API 3 only; null in 2.
  decltype(&::ggml_backend_buft_alloc_buffer_n) ggml_backend_buft_alloc_buffer_n;

  // Nodes of these operations compute nothing.
  bool is_empty_op(enum ggml_op o) const {
    return o == op.none || o == op.view || o == op.reshape || o == op.permute || o == op.transpose;
  }
};

// Finds the host's ggml through an address of its code (the return address of ggml_backend_init) and checks that we understand
// it. On failure returns false and says why, in a clause that follows "cannot load: ". Call once, before host().
bool host_ggml_connect(const void* address_in_host, std::string* why_not);

const HostGgml& host();

}  // namespace kvt::plugin

#endif
