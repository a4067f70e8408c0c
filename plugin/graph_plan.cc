#include "graph_plan.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "cache_buffer.h"
#include "metrics.h"
#include "no_throw.h"
#include "paged_nodes.h"
#include "plugin_messages.h"
#include "state_rows.h"

namespace kvt::plugin {
namespace {

constexpr size_t kAlignment = 64;

bool will_learn(const SetRowsTask& task) {
  const KeyConditioner* conditioner = task.cache->conditioner();
  return conditioner != nullptr && conditioner->will_learn(static_cast<size_t>(task.node->src[0]->ne[1]));
}

bool has_same_stages(const SetRowsTask& task) {
  if (task.cache->conditioner() == nullptr) return true;
  SetRowsTask now{};
  now.node = task.node;
  now.cache = task.cache;
  now.first_row = task.first_row;
  now.awaits_learning = task.awaits_learning;
  find_stages(&now);
  return now.begins_mean == task.begins_mean && now.later_stages == task.later_stages;
}

}  // namespace

GraphPlan::~GraphPlan() {
  if (scratch_ != nullptr) host().ggml_backend_buffer_free(scratch_);
  std::free(shared_.attend_workspace);
}

// uid 0 means that the host gives no identity; evaluation callbacks pass such parts of graphs.
bool GraphPlan::is_reusable(const ggml_cgraph* graph, int n_threads) const {
  return graph->uid != 0 && graph->n_nodes > 0 && graph->uid == uid_ && graph->n_nodes == n_graph_nodes_ &&
         n_threads <= shared_.n_threads && graph->nodes[0] == first_node_ && graph->nodes[graph->n_nodes - 1] == last_node_ &&
         last_node_->data == last_data_ && conditioning_ == KeyConditioner::generation() &&
         std::all_of(set_rows_tasks_.begin(), set_rows_tasks_.end(),
                     [](const SetRowsTask& task) { return task.awaits_learning == will_learn(task) && has_same_stages(task); });
}

ggml_cgraph* GraphPlan::prepare(ggml_cgraph* graph, int n_threads) {
  shared_.has_failed = shared_.has_run_out_of_memory = false;
  has_begun_ = false;
  if (graph->n_nodes == 0) return graph;
  state_settle_caches_of(graph);
  if (!is_reusable(graph, n_threads)) {
    uid_ = 0;
    conditioning_ = KeyConditioner::generation();
    build(graph);
    if (is_changed_ && !allocate(n_threads)) return nullptr;
    uid_ = graph->uid;
    n_graph_nodes_ = graph->n_nodes;
    first_node_ = graph->nodes[0];
    last_node_ = graph->nodes[graph->n_nodes - 1];
    last_data_ = last_node_->data;
    // A copy of the host's structure keeps its table of uses, by which the inner backend knows what it may fuse.
    inner_graph_ = *graph;
    inner_graph_.size = 0;
    inner_graph_.n_leafs = 0;
    inner_graph_.leafs = nullptr;
    inner_graph_.grads = nullptr;
    inner_graph_.grad_accs = nullptr;
    inner_graph_.nodes = nodes_.data();
    inner_graph_.n_nodes = static_cast<int>(nodes_.size());
    inner_graph_.uid = host().ggml_graph_next_uid();
  }
  if (!is_changed_) return graph;
  return begin_step() ? &inner_graph_ : nullptr;
}

// What changes from step to step although the graph is the same: the newest rows.
bool GraphPlan::begin_step() {
  size_t n_values[2] = {0, 0};
  for (SetRowsTask& task : set_rows_tasks_) {
    plan_set_rows(&task);
    if (!task.has_batch) continue;
    size_t* most = &n_values[task.cache->side()];
    *most = std::max(*most, task.cache->recent()->memory_values(task.batch));
  }
  for (int side : {KVT_KEY, KVT_VALUE}) {
    if (n_values[side] <= batch_values_[side]) continue;
    batch_values_[side] = 0;
    batch_rows_[side].reset(new (std::nothrow) ggml_fp16_t[n_values[side]]);
    if (batch_rows_[side] == nullptr) return false;
    batch_values_[side] = n_values[side];
  }
  for (AttendTask& task : attend_tasks_) plan_attend(&task);
  // Nothing fails from here on, so the lists of the newest rows change together.
  has_begun_ = true;
  ++counters().graphs;
  // The library's counters, which a step that failed may have left in the middle.
  if (shared_.attend_workspace != nullptr) std::memset(shared_.attend_workspace, 0, kAlignment);
  for (SetRowsTask& task : set_rows_tasks_) {
    task.batch.memory = batch_rows_[task.cache->side()].get();
    metrics_count_rows(*task.cache, task.node->src[0]->ne[1]);
    begin_set_rows(&task);
  }
  for (AttendTask& task : attend_tasks_) {
    if (!has_write_after_attention_) begin_attend(&task);
  }
  return true;
}

void GraphPlan::end_step(bool is_done) noexcept {
  for (const SetRowsTask& task : set_rows_tasks_) {
    if (has_begun_ && !is_done && task.has_batch) task.cache->recent()->abandon_batch(task.batch);
  }
  has_begun_ = false;
}

void GraphPlan::build(const ggml_cgraph* graph) {
  nodes_.clear();
  shadows_.clear();
  set_rows_tasks_.clear();
  set_rows_stages_.clear();
  learn_tasks_.clear();
  attend_tasks_.clear();
  image_tasks_.clear();
  calls_.clear();
  in_scratch_.clear();
  is_changed_ = has_write_after_attention_ = false;
  for (int i = 0; i < graph->n_nodes; ++i) add_node(graph->nodes[i]);
}

void GraphPlan::add_node(ggml_tensor* node) {
  if (!touches_pages(node)) {
    nodes_.push_back(node);
    return;
  }
  is_changed_ = true;
  CacheTensor* cache = paged_cache_of(node);
  if (node->op == host().op.set_rows && cache != nullptr && can_set_rows(node, *cache)) {
    add_set_rows(node, cache);
    return;
  }
  const bool is_attention = node->op == host().op.flash_attn_ext;
  AttendTask task{};
  const bool can_attend = is_attention && make_attend_task(node, &task);
  for (const ggml_tensor* src : node->src) {
    CacheTensor* keys = paged_cache_of(src);
    if (keys != nullptr && awaits_learning(keys)) {
      add_learning(node, keys, can_attend ? node->src[0] : nullptr);
    }
  }
  if (is_attention) {
    if (can_attend) {
      task.shared = &shared_;
      const KeyConditioner* conditioner = task.keys.cache->conditioner();
      task.teaches = conditioner != nullptr && conditioner->is_learning() && !awaits_learning(task.keys.cache);
      for (AttendTask::Side* side : {&task.keys, &task.values}) {
        for (SetRowsTask& rows : set_rows_tasks_) {
          if (rows.cache != side->cache) continue;
          side->new_rows = &rows;
          // An input of the graph, so that it is there before the graph runs.
          const ggml_tensor* mask = node->src[3];
          const bool is_input = mask != nullptr && mask->op == host().op.none && mask->type == GGML_TYPE_F16 && mask->ne[2] == 1;
          rows.mask = is_input && task.takes_recent ? mask : nullptr;
          rows.n_queries = node->src[0]->ne[1];
        }
      }
      attend_tasks_.push_back(std::move(task));
      add_custom(node, run_attend, &attend_tasks_.back());
      return;
    }
  }
  add_generic(node);
}

void GraphPlan::add_set_rows(ggml_tensor* node, CacheTensor* cache) {
  for (const AttendTask& task : attend_tasks_) {
    has_write_after_attention_ = has_write_after_attention_ || task.keys.cache == cache || task.values.cache == cache;
  }
  const auto first_row = static_cast<int64_t>(cache->offset_of(node->data) / cache->row_bytes());
  SetRowsTask* task = &set_rows_tasks_.emplace_back();
  task->shared = &shared_;
  task->node = node;
  task->cache = cache;
  task->first_row = first_row;
  task->awaits_learning = will_learn(*task);
  find_stages(task);
  const int64_t n_rows = node->src[0]->ne[1];
  for (size_t i = 0; i <= task->later_stages.size(); ++i) {
    const int64_t begin = i == 0 ? 0 : task->later_stages[i - 1];
    set_rows_stages_.push_back({task, begin, i < task->later_stages.size() ? task->later_stages[i] : n_rows});
    if (i > 0 || task->begins_mean) add_custom(node, run_begin_means, &set_rows_stages_.back());
    add_custom(node, run_set_rows, &set_rows_stages_.back());
  }
}

// Whether keys wait to be stored, from this graph or an earlier one.
bool GraphPlan::awaits_learning(const CacheTensor* keys) const {
  if (keys->conditioner() == nullptr || !keys->conditioner()->is_learning()) return false;
  return keys->conditioner()->has_unstored() ||
         std::any_of(set_rows_tasks_.begin(), set_rows_tasks_.end(),
                     [&](const SetRowsTask& task) { return task.cache == keys && task.awaits_learning; });
}

void GraphPlan::add_learning(const ggml_tensor* node, CacheTensor* keys, const ggml_tensor* queries) {
  learn_tasks_.push_back({keys, queries, 0});
  LearnTask* task = &learn_tasks_.back();
  add_custom(node, run_learn, task);
  add_custom(node, run_store_kept, task);
  add_custom(node, run_finish_learning, task);
}

void GraphPlan::add_generic(ggml_tensor* node) {
  say_if_slow(node);
  size_t scratch_bytes = 0;
  const std::map<CacheTensor*, RowRange> ranges = row_ranges_of(node, kAlignment, &scratch_bytes);
  for (const auto& [cache, range] : ranges) {
    image_tasks_.push_back({&shared_, cache, range.begin, range.end - range.begin, range.scratch_offset});
    add_custom(node, run_image_decode, &image_tasks_.back());
  }
  scratch_bytes_needed_ = std::max(scratch_bytes_needed_, scratch_bytes);

  ggml_tensor* shadow = add_shadow(node);
  for (ggml_tensor*& src : shadow->src) {
    if (src != nullptr && paged_cache_of(src) != nullptr) src = add_shadow_source(src, ranges);
  }
  if (paged_cache_of(node) != nullptr) move_to_scratch(shadow, ranges);
  nodes_.push_back(shadow);

  if (CacheTensor* written = paged_cache_of(node)) {
    const RowRange& range = ranges.at(written);
    image_tasks_.push_back({&shared_, written, range.begin, range.end - range.begin, range.scratch_offset});
    add_custom(node, run_image_encode, &image_tasks_.back());
  }
}

ggml_tensor* GraphPlan::add_shadow(const ggml_tensor* node) {
  shadows_.push_back(*node);
  return &shadows_.back();
}

ggml_tensor* GraphPlan::add_shadow_source(const ggml_tensor* src, const std::map<CacheTensor*, RowRange>& ranges) {
  ggml_tensor* shadow = add_shadow(src);
  shadow->op = host().op.none;
  std::fill(std::begin(shadow->src), std::end(shadow->src), nullptr);
  move_to_scratch(shadow, ranges);
  return shadow;
}

void GraphPlan::move_to_scratch(ggml_tensor* shadow, const std::map<CacheTensor*, RowRange>& ranges) {
  CacheTensor* cache = paged_cache_of(shadow);
  const RowRange& range = ranges.at(cache);
  const size_t in_range = cache->offset_of(shadow->data) - static_cast<size_t>(range.begin) * cache->row_bytes();
  in_scratch_.push_back({shadow, range.scratch_offset + in_range});
}

void GraphPlan::run_call(ggml_tensor* dst, int part, int n_parts, void* user_data) {
  const auto* call = static_cast<const Call*>(user_data);
  if (!completes([&] { call->run(dst, part, n_parts, call->task); })) call->shared->has_run_out_of_memory = true;
}

// A node that ggml runs as our function. It keeps the shape and the address of the host's node.
void GraphPlan::add_custom(const ggml_tensor* node, ggml_custom_op_t run, void* task) {
  ggml_tensor* custom = add_shadow(node);
  calls_.push_back({run, task, &shared_});
  const ggml_custom_op_params params = {run_call, GGML_N_TASKS_MAX, &calls_.back()};
  custom->op = host().op.custom;
  std::memset(custom->op_params, 0, sizeof(custom->op_params));
  std::memcpy(custom->op_params, &params, sizeof(params));
  nodes_.push_back(custom);
}

// Scratch and workspace for the largest node: nodes run one after another and share them.
bool GraphPlan::allocate(int n_threads) {
  const HostGgml& ggml = host();
  if (scratch_bytes_needed_ > 0 &&
      (scratch_ == nullptr || ggml.ggml_backend_buffer_get_size(scratch_) < scratch_bytes_needed_)) {
    if (scratch_ != nullptr) ggml.ggml_backend_buffer_free(scratch_);
    scratch_ = ggml.ggml_backend_buft_alloc_buffer(inner_device_->iface.get_buffer_type(inner_device_), scratch_bytes_needed_);
    if (scratch_ == nullptr) return false;
    shared_.scratch = static_cast<char*>(ggml.ggml_backend_buffer_get_base(scratch_));
  }
  for (const InScratch& s : in_scratch_) {
    s.tensor->data = shared_.scratch + s.offset;
    s.tensor->buffer = scratch_;
    s.tensor->view_src = nullptr;
    s.tensor->view_offs = 0;
  }

  size_t workspace_bytes = 0;
  for (const AttendTask& task : attend_tasks_) {
    workspace_bytes =
        std::max(workspace_bytes, kvt_attend_workspace_bytes(task.codec, &task.shape, static_cast<uint32_t>(n_threads)));
  }
  shared_.n_threads = n_threads;
  if (workspace_bytes > workspace_bytes_) {
    std::free(shared_.attend_workspace);
    workspace_bytes_ = round_up(workspace_bytes, kAlignment);
    shared_.attend_workspace = std::aligned_alloc(kAlignment, workspace_bytes_);
    if (shared_.attend_workspace == nullptr) {
      workspace_bytes_ = 0;
      return false;
    }
  }
  return true;
}

}  // namespace kvt::plugin
