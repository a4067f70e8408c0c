// The host's graph as a list of steps on a GPU: runs of nodes for the inner backend, launches of our kernels, work on the host.
//
//   not on a cache of ours             a node of the inner backend
//   SET_ROWS                           encode, keys and values of a layer in one launch; for conditioned keys before it: begin_means
//   FLASH_ATTN_EXT of few queries      our kernel, on the codes; before the first one of each mask: prepare_step
//   FLASH_ATTN_EXT of many             at SET_ROWS the cells of the layer are decoded to f16 scratch, and a copy of the node puts
//                                      the new rows there as they are; a copy of the attention node works on the scratch
//   anything else (shift, copy ...)    decode the rows it touches, a copy of the node on the scratch, encode what has changed
//   any node on a layer in plain rows  a copy of the node with its addresses in device memory
//
// Arguments of launches are constants, as the same steps may be replayed as one CUDA graph: what changes from step to step lies
// in device memory.
#ifndef KVT_PLUGIN_CUDA_PLAN_H
#define KVT_PLUGIN_CUDA_PLAN_H

#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda_calls.h"
#include "key_learning.h"
#include "plan_memory.h"

namespace kvt::plugin {

struct PlanStep {
  enum class Kind { kNodes, kLaunch, kHost };
  Kind kind = Kind::kNodes;
  size_t begin = 0, end = 0;  // kNodes: of CudaPlan::nodes()
  bool has_work = false;      // kNodes: some node computes
  std::function<bool(std::string* error)> run;  // others; kHost: the stream is idle then
  const bool* is_due = nullptr;                 // kHost: only if; nullptr: always
};

class CudaPlan {
 public:
  CudaPlan(ggml_backend_dev_t inner_device, GpuStream* stream);

  // Whether the plan is for this graph and still right.
  bool is_reusable(const ggml_cgraph* graph) const;
  // Makes the plan. False if there is no memory.
  // wait: until the inner backend has done all it was given; before memory that earlier plans used is replaced.
  bool build(const ggml_cgraph* graph, const std::function<void()>& wait);

  bool is_changed() const { return is_changed_; }  // else the host's own graph will do
  const std::vector<PlanStep>& steps() const { return steps_; }
  std::vector<ggml_tensor*>& nodes() { return nodes_; }
  // Whether the steps, without those of kind kHost, may become a CUDA graph.
  bool is_capturable() const { return is_capturable_; }

  // Before the steps: counts rows. Returns whether a step of kind kHost has to run.
  bool begin();
  // After the steps.
  void end();
  // What was left for later, when the steps are complete.
  bool has_rest() const { return has_rest_; }
  bool do_rest(std::string* error);

 private:
  struct Attention {
    const ggml_tensor* node;
    AttendTask task;
    bool is_direct = false;
    kvt_cuda_attention args{};
    kvt_cuda_exact_rows exact_k{}, exact_v{};
    int step = -1;             // of prepared_
    ptrdiff_t slopes_at = -1;  // in constants
    int slots[2] = {-1, -1};   // scratch of keys and values
    bool is_probe_due = false;
  };
  // One launch of kvt_cuda_prepare_step.
  struct Prepared {
    kvt_cuda_step_args args;
    size_t offset = 0, bytes = 0;
    size_t stream = 0;          // the first one
    uint64_t ring_history = 0;  // before this graph
    const void* new_cells = nullptr;
    std::vector<const CacheTensor*> caches;  // that share it: their rings have to be equal
  };
  struct NewRows {
    ggml_tensor* node;
    CacheTensor* cache;
  };
  struct Learning {
    KeyLearning keys;
    int slot;                // of staging memory
    bool is_planned = false;  // what follows the copy of its rows
  };
  // Where rows of a cache lie while a node works on them: a slot of scratch, or its own rows on the device.
  struct Place {
    int slot = -1;
    size_t origin = 0;  // offset in the image of the slot's first byte
  };
  using Places = std::map<const CacheTensor*, Place>;
  struct Moved {
    ggml_tensor* tensor;
    int slot;  // -1: address is final
    ptrdiff_t offset;
  };

  void find_attentions(const ggml_cgraph* graph);
  void add_node(ggml_tensor* node);
  void add_inner(ggml_tensor* node);
  void add_launch(std::function<bool(std::string*)> run);
  void add_host(std::function<bool(std::string*)> run, const bool* is_due);
  void add_set_rows(ggml_tensor* node, CacheTensor* cache);
  void flush_rows();
  void add_rows(const std::vector<NewRows>& rows);
  void add_encode(const std::vector<NewRows>& rows);
  std::vector<int64_t> parts_of(const NewRows& keys);
  void add_learning(Learning* learning, const ggml_tensor* queries);
  Learning* learning_of(const CacheTensor* cache);
  void add_attention(Attention* attention);
  void add_direct(Attention* attention);
  void add_generic(ggml_tensor* node);
  void add_decode(CacheTensor* cache, int64_t begin, int64_t end, int slot);
  void add_decode_for(Attention* attention, kvt_side side);
  int prepared_for(const Attention& attention);
  Attention* next_reader(const CacheTensor* cache);
  const NewRows* new_rows_of(const CacheTensor* cache) const;
  const void* new_cells_of(const CacheTensor* cache) const;
  size_t add_constant(const void* data, size_t bytes);

  ggml_tensor* add_shadow(const ggml_tensor* node);
  ggml_tensor* shadow_on(const ggml_tensor* node, const Places& places);
  void move(ggml_tensor* shadow, const Places& places);
  bool place();
  bool probe(Attention* attention, std::string* error);

  GpuStream* stream_;
  PlanMemory memory_;
  size_t n_constant_numbers_ = 0;  // 0, 1, 2 ... at the beginning of the constants
  std::vector<char> constants_;
  int probe_slot_ = -1;  // of staging memory

  std::vector<PlanStep> steps_;
  std::vector<ggml_tensor*> nodes_;
  std::deque<ggml_tensor> shadows_;
  std::deque<Attention> attentions_;  // in the order of the graph
  size_t n_attentions_done_ = 0;
  std::deque<Prepared> prepared_;
  size_t prepared_bytes_ = 0, workspace_bytes_ = 0;
  std::vector<NewRows> new_rows_;
  std::vector<NewRows> waiting_rows_;  // of keys or values, for those of the other side
  std::function<void()> wait_;
  std::map<const void*, std::vector<int64_t>> numbers_of_;  // rows of batches, by the address of their numbers
  std::deque<Learning> learning_;
  std::deque<kvt_cuda_exact_rows> exact_rows_;
  std::vector<Moved> moved_;
  ScratchSlots slots_, staging_;
  bool is_changed_ = false, is_capturable_ = false, has_rest_ = false;
  bool depends_on_cells_ = false;  // on which the host writes to

  // What the plan was made for.
  uint64_t uid_ = 0;
  uint64_t conditioning_ = 0;  // KeyConditioner::generation()
  int n_graph_nodes_ = 0;
  const ggml_tensor *first_node_ = nullptr, *last_node_ = nullptr;
  const void* last_data_ = nullptr;
};

}  // namespace kvt::plugin

#endif
