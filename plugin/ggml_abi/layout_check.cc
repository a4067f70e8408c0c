#include "layout_check.h"

#include <cstring>
#include <vector>

namespace kvt::plugin {
namespace {

void no_op(ggml_tensor*, int, int, void*) {}

// Tensors: the fields that we read, at both ends and in the middle of the structure.
bool check_tensor(ggml_context* ctx, ggml_tensor* t, ggml_tensor* view) {
  const HostGgml& ggml = host();
  constexpr size_t kObjectBytes = 32;  // ggml's header of an object in a context
  if (ggml.ggml_tensor_overhead() != kObjectBytes + sizeof(ggml_tensor)) return false;
  if (std::strcmp(ggml.ggml_type_name(GGML_TYPE_F16), "f16") != 0 ||
      std::strcmp(ggml.ggml_type_name(GGML_TYPE_I64), "i64") != 0 ||
      std::strcmp(ggml.ggml_type_name(GGML_TYPE_F32), "f32") != 0 ||
      std::strcmp(ggml.ggml_type_name(GGML_TYPE_I32), "i32") != 0) {
    return false;
  }
  if (t->type != GGML_TYPE_F16 || t->ne[0] != 24 || t->ne[1] != 5 || t->ne[3] != 1 || t->nb[0] != 2 || t->nb[1] != 48 ||
      t->op != ggml.op.none || t->data != nullptr || t->buffer != nullptr || std::strcmp(t->name, "probe") != 0) {
    return false;
  }
  if (view->view_src != t || view->view_offs != 96 || view->src[0] != t || view->op != ggml.op.view) return false;

  // Custom operations: we write op_params ourselves.
  ggml_tensor* args[] = {t};
  int marker = 0;
  ggml_tensor* custom = ggml.ggml_custom_4d(ctx, GGML_TYPE_F32, 1, 1, 1, 1, args, 1, no_op, GGML_N_TASKS_MAX, &marker);
  ggml_custom_op_params params{};
  std::memcpy(&params, custom->op_params, sizeof(params));
  return custom->op == ggml.op.custom && params.fun == no_op && params.n_tasks == GGML_N_TASKS_MAX &&
         params.userdata == &marker;
}

// Graphs: we hand the inner backend a copy of the caller's structure with other nodes.
bool check_graph(ggml_context* ctx, ggml_tensor* view) {
  const HostGgml& ggml = host();
  ggml_cgraph* graph = ggml.ggml_new_graph_custom(ctx, 16, false);
  ggml.ggml_build_forward_expand(graph, view);
  if (graph->size != ggml.ggml_graph_size(graph) || graph->n_nodes != ggml.ggml_graph_n_nodes(graph) || graph->n_nodes != 1 ||
      graph->nodes[0] != view || graph->n_leafs != 1 || graph->grads != nullptr || graph->use_counts == nullptr) {
    return false;
  }
  const ggml_hash_set& set = graph->visited_hash_set;
  bool has_view = false;
  for (size_t i = 0; i < set.size && !has_view; ++i) has_view = ggml_bitset_get(set.used, i) && set.keys[i] == view;
  return has_view && graph->order == GGML_CGRAPH_EVAL_ORDER_LEFT_TO_RIGHT && graph->uid == 0;
}

// Backends: the interface table lies inside the structure, so the fields behind it tell whether the table has our length.
bool check_backend(ggml_backend_dev_t cpu) {
  const HostGgml& ggml = host();
  ggml_backend_t backend = ggml.ggml_backend_dev_init(cpu, nullptr);
  if (backend == nullptr) return false;
  const bool is_same = backend->device == cpu && backend->context != nullptr && backend->iface.graph_compute != nullptr;
  ggml.ggml_backend_free(backend);
  return is_same;
}

bool check_buffer(ggml_backend_dev_t cpu) {
  const HostGgml& ggml = host();
  ggml_backend_buffer_type_t buft = cpu->iface.get_buffer_type(cpu);
  ggml_backend_buffer_t buffer = ggml.ggml_backend_buft_alloc_buffer(buft, 4096);
  if (buffer == nullptr) return false;
  const bool is_same = buffer->buft == buft && buffer->size == 4096 && buffer->context != nullptr &&
                       buffer->iface.get_base(buffer) == ggml.ggml_backend_buffer_get_base(buffer);
  ggml.ggml_backend_buffer_free(buffer);
  return is_same;
}

}  // namespace

bool check_layout(ggml_backend_dev_t cpu, std::string* difference) {
  const HostGgml& ggml = host();
  std::vector<char> memory(64 * 1024);
  ggml_init_params params{};
  params.mem_size = memory.size();
  params.mem_buffer = memory.data();
  params.no_alloc = true;
  ggml_context* ctx = ggml.ggml_init(params);
  if (ctx == nullptr) {
    *difference = "contexts";
    return false;
  }
  ggml_tensor* t = ggml.ggml_new_tensor_2d(ctx, GGML_TYPE_F16, 24, 5);
  ggml.ggml_set_name(t, "probe");
  ggml_tensor* view = ggml.ggml_view_2d(ctx, t, 24, 2, t->nb[1], 96);
  const char* what = nullptr;
  if (!check_tensor(ctx, t, view)) {
    what = "tensors";
  } else if (!check_graph(ctx, view)) {
    what = "graphs";
  }
  ggml.ggml_free(ctx);
  if (what == nullptr && !check_backend(cpu)) what = "backends";
  if (what == nullptr && !check_buffer(cpu)) what = "buffers";
  if (what != nullptr) *difference = what;
  return what == nullptr;
}

}  // namespace kvt::plugin
