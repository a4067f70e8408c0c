// What runs in place of the host's operations on a compressed cache. Each task is the user data of a GGML_OP_CUSTOM node, so it
// runs on the inner backend's own threads: `part` of `n_parts` is one thread's share, and ggml's barriers separate the nodes.
#ifndef KVT_PLUGIN_CACHE_TASKS_H
#define KVT_PLUGIN_CACHE_TASKS_H

#include <atomic>
#include <vector>

#include "cache_tensor.h"

namespace kvt::plugin {

// Shared by the tasks of a plan.
struct TaskShared {
  std::atomic<bool> has_failed{false};
  std::atomic<bool> has_run_out_of_memory{false};
  char* scratch = nullptr;  // f16 rows for operations that need plain tensors
  void* attend_workspace = nullptr;
  int n_threads = 0;  // that the workspace is made for
};

// SET_ROWS: rows of src[0] (f32) go to the rows of the cache that src[1] (i64 or i32) names.
struct SetRowsTask {
  TaskShared* shared = nullptr;
  const ggml_tensor* node = nullptr;
  CacheTensor* cache = nullptr;
  int64_t first_row = 0;  // of the view that the node writes to
  RecentRows::Batch batch;  // the newest rows, if the cache keeps them
  bool has_batch = false;
  const ggml_tensor* mask = nullptr;  // of the attention that reads them, if it is this graph's and its queries are these rows
  int64_t n_queries = 0;              // of each stream
  // Keys, while their conditioning is being learnt: they are stored by run_store_kept, after a new estimate, rather than at once.
  bool awaits_learning = false;
  // The rows are stored in stages, first rows of all but the first stage here: a key whose cells have no mean yet waits until the rows
  // before it are stored, which the mean is made from.
  std::vector<int64_t> later_stages;
  bool begins_mean = false;  // the first stage does
};
// Rows begin .. end - 1 of a SET_ROWS.
struct SetRowsStage {
  SetRowsTask* task;
  int64_t begin, end;
};
// Before the graph runs: plans to enter the rows among the newest ones (RecentRows::plan_batch).
void plan_set_rows(SetRowsTask* task);
// Enters them.
void begin_set_rows(SetRowsTask* task) noexcept;
// Finds its stages. What the host has put into src[1] is looked at.
void find_stages(SetRowsTask* task);
// For keys: the means of the cells of a stage.
void run_begin_means(ggml_tensor* dst, int part, int n_parts, void* stage);
// True if the task can do the node.
bool can_set_rows(const ggml_tensor* node, const CacheTensor& cache);
void run_set_rows(ggml_tensor* dst, int part, int n_parts, void* stage);

// Before an operation that reads keys whose conditioning is being learnt: three tasks, in this order.
struct LearnTask {
  CacheTensor* keys;
  const ggml_tensor* queries;  // of the attention that follows; nullptr if it is another operation
  size_t first_to_store;
};
void run_learn(ggml_tensor* dst, int part, int n_parts, void* task);
void run_store_kept(ggml_tensor* dst, int part, int n_parts, void* task);
void run_finish_learning(ggml_tensor* dst, int part, int n_parts, void* task);

// FLASH_ATTN_EXT with keys and values in pages.
struct AttendTask {
  TaskShared* shared;
  const ggml_tensor* node;
  const kvt_codec* codec;
  kvt_attention shape;  // the addresses of q, mask, sinks and out are the node's at run time
  std::vector<float> slopes;

  struct Side {
    CacheTensor* cache = nullptr;
    size_t stream = 0, head = 0;         // first ones that it reads
    const SetRowsTask* new_rows = nullptr;  // of the same graph, before it
    const RecentRows::Batch* batch() const { return new_rows != nullptr && new_rows->has_batch ? &new_rows->batch : nullptr; }
  } keys, values;
  std::vector<int32_t> recent_cells;
  bool takes_recent = false;
  bool is_probe_due = false;
  bool teaches = false;  // its queries are learnt from, although nothing is estimated in this graph
};
// Fills shape, codec and slopes. False if the node is none that kvt_attend_thread can do.
bool make_attend_task(const ggml_tensor* node, AttendTask* task);
// Before the graph runs, after plan_set_rows: takes the memory for begin_attend.
void plan_attend(AttendTask* task);
// After begin_set_rows: which of the newest rows it attends exactly.
void begin_attend(AttendTask* task);
void run_attend(ggml_tensor* dst, int part, int n_parts, void* task);

// Rows of a cache <-> scratch, around an operation that needs the f16 tensor.
struct ImageTask {
  TaskShared* shared;
  CacheTensor* cache;
  int64_t first_row, n_rows;
  size_t scratch_offset;
};
void run_image_decode(ggml_tensor* dst, int part, int n_parts, void* task);
void run_image_encode(ggml_tensor* dst, int part, int n_parts, void* task);

}  // namespace kvt::plugin

#endif
