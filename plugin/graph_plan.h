// The host's graph with the operations on a compressed cache replaced, as a list of nodes for one graph_compute of the inner
// backend.
//
//   not on a compressed cache       the host's node
//   SET_ROWS, FLASH_ATTN_EXT        a custom node that runs on the pages (cache_tasks.h)
//   anything else (shift, copy ...) custom nodes that decode the rows it touches to f16 scratch; a copy of the node on the
//   scratch; a
//                                   custom node that encodes the rows back if the node writes them. Slow, never wrong.
#ifndef KVT_PLUGIN_GRAPH_PLAN_H
#define KVT_PLUGIN_GRAPH_PLAN_H

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "cache_tasks.h"
#include "ggml_abi/host_ggml.h"
#include "paged_nodes.h"

namespace kvt::plugin {

class GraphPlan {
 public:
  explicit GraphPlan(ggml_backend_dev_t inner_device) : inner_device_(inner_device) {}
  ~GraphPlan();
  GraphPlan(const GraphPlan&) = delete;
  GraphPlan& operator=(const GraphPlan&) = delete;

  // The graph for the inner backend: the host's own if it touches no compressed cache. nullptr if there is no memory. Valid
  // until the next call. A plan is reused while the host says, by its uid, that the graph is the same.
  ggml_cgraph* prepare(ggml_cgraph* graph, int n_threads);

  // To be called when the graph has run, or has not: what failed leaves the caches as if it had not begun, but for the cells that it was to
  // write.
  void end_step(bool is_done) noexcept;

  // Whether prepare would reuse the plan that it has.
  bool is_reusable(const ggml_cgraph* graph, int n_threads) const;

  // Whether a task of the graph computed last has failed.
  bool has_failed() const { return shared_.has_failed; }
  bool has_run_out_of_memory() const { return shared_.has_run_out_of_memory; }

 private:
  void build(const ggml_cgraph* graph);
  void add_node(ggml_tensor* node);
  void add_set_rows(ggml_tensor* node, CacheTensor* cache);
  void add_learning(const ggml_tensor* node, CacheTensor* keys, const ggml_tensor* queries);
  bool awaits_learning(const CacheTensor* keys) const;
  void add_generic(ggml_tensor* node);
  // A task as the user data of a node: what it throws ends here, since it runs on the host's threads.
  struct Call {
    ggml_custom_op_t run;
    void* task;
    TaskShared* shared;
  };
  static void run_call(ggml_tensor* dst, int part, int n_parts, void* call);
  void add_custom(const ggml_tensor* node, ggml_custom_op_t run, void* task);
  ggml_tensor* add_shadow(const ggml_tensor* node);
  ggml_tensor* add_shadow_source(const ggml_tensor* src, const std::map<CacheTensor*, RowRange>& ranges);
  void move_to_scratch(ggml_tensor* shadow, const std::map<CacheTensor*, RowRange>& ranges);
  bool allocate(int n_threads);
  bool begin_step();

  ggml_backend_dev_t inner_device_;
  TaskShared shared_;

  // The plan. Deques: the nodes point to their tasks and shadows.
  std::vector<ggml_tensor*> nodes_;
  std::deque<ggml_tensor> shadows_;
  std::deque<SetRowsTask> set_rows_tasks_;
  std::deque<SetRowsStage> set_rows_stages_;
  std::deque<LearnTask> learn_tasks_;
  std::deque<AttendTask> attend_tasks_;
  std::deque<ImageTask> image_tasks_;
  std::deque<Call> calls_;
  bool is_changed_ = false;  // nodes_ differs from the host's nodes
  ggml_cgraph inner_graph_{};

  // Shadows whose data is in scratch: their place is known once all nodes are planned.
  struct InScratch {
    ggml_tensor* tensor;
    size_t offset;
  };
  std::vector<InScratch> in_scratch_;
  size_t scratch_bytes_needed_ = 0;
  ggml_backend_buffer_t scratch_ = nullptr;

  size_t workspace_bytes_ = 0;

  // Newest rows of a large batch, keys and values of one layer: layers run one after another and share them.
  std::unique_ptr<ggml_fp16_t[]> batch_rows_[2];
  size_t batch_values_[2] = {0, 0};
  bool has_begun_ = false;  // a step
  bool has_write_after_attention_ = false;  // of one cache: then attention takes no newest rows

  // What the plan was made for.
  uint64_t uid_ = 0;
  uint64_t conditioning_ = 0;  // KeyConditioner::generation()
  int n_graph_nodes_ = 0;
  const ggml_tensor* first_node_ = nullptr;
  const ggml_tensor* last_node_ = nullptr;
  const void* last_data_ = nullptr;
};

}  // namespace kvt::plugin

#endif
