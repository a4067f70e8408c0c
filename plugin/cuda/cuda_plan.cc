#include "cuda_plan.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <set>
#include <thread>

#include "cache_buffer.h"
#include "fit_probe.h"
#include "metrics.h"
#include "no_throw.h"
#include "paged_nodes.h"
#include "plugin_messages.h"
#include "startup_report.h"

namespace kvt::plugin {
namespace {

std::atomic<uint64_t> g_step{0};

constexpr char kRowOutside[] = "a row of keys outside of the cache; please report this";

size_t aligned(size_t n) { return round_up(n, kDeviceAlignment); }

bool check(kvt_status status, const char* what, std::string* error) {
  if (status == KVT_OK) return true;
  *error = std::string(what) + ": " + kvt_status_string(status);
  return false;
}

// A cache tensor with memory on the device, in pages or rows.
CacheTensor* device_cache_of(const ggml_tensor* t) {
  CacheTensor* cache = cache_tensor_of(t);
  return cache != nullptr && (cache->device() != nullptr || cache->device_rows() != nullptr) ? cache : nullptr;
}

bool touches_cache(const ggml_tensor* node) {
  if (host().is_empty_op(node->op)) return false;
  if (device_cache_of(node) != nullptr) return true;
  return std::any_of(std::begin(node->src), std::end(node->src),
                     [](const ggml_tensor* s) { return device_cache_of(s) != nullptr; });
}

// The CUDA backend reads the list of experts on the host where it has no kernel that takes it on the device: not in a capture.
bool may_wait_for_experts(const ggml_tensor* node) {
  if (std::strcmp(host().ggml_op_name(node->op), "MUL_MAT_ID") != 0) return false;
  const enum ggml_type type = node->src[0]->type;
  return node->ne[2] > 1 || type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

}  // namespace

CudaPlan::CudaPlan(ggml_backend_dev_t inner_device, GpuStream* stream)
    : stream_(stream), memory_(inner_device->iface.get_buffer_type(inner_device)) {}

// uid 0 means that the host gives no identity; evaluation callbacks pass such parts of graphs.
bool CudaPlan::is_reusable(const ggml_cgraph* graph) const {
  const bool is_same = graph->uid != 0 && graph->n_nodes > 0 && graph->uid == uid_ && graph->n_nodes == n_graph_nodes_ &&
                       graph->nodes[0] == first_node_ && graph->nodes[graph->n_nodes - 1] == last_node_ &&
                       last_node_->data == last_data_ && conditioning_ == KeyConditioner::generation() && !depends_on_cells_;
  if (!is_same) return false;
  for (const Learning& learning : learning_) {
    if (!learning.keys.keys()->conditioner()->is_learning()) return false;
  }
  for (const Prepared& prepared : prepared_) {
    for (const CacheTensor* cache : prepared.caches) {
      if (cache->device()->ring_history() != prepared.caches[0]->device()->ring_history()) return false;
    }
  }
  return true;
}

bool CudaPlan::build(const ggml_cgraph* graph, const std::function<void()>& wait) {
  uid_ = 0;
  conditioning_ = KeyConditioner::generation();
  steps_.clear();
  nodes_.clear();
  shadows_.clear();
  attentions_.clear();
  prepared_.clear();
  new_rows_.clear();
  waiting_rows_.clear();
  numbers_of_.clear();
  wait_ = wait;
  learning_.clear();
  exact_rows_.clear();
  moved_.clear();
  slots_.clear();
  staging_.clear();
  constants_.clear();
  n_attentions_done_ = n_constant_numbers_ = prepared_bytes_ = 0;
  probe_slot_ = -1;
  is_changed_ = depends_on_cells_ = false;
  is_capturable_ = graph->uid != 0;

  find_attentions(graph);
  for (int i = 0; i < graph->n_nodes; ++i) add_node(graph->nodes[i]);
  flush_rows();
  for (Learning& learning : learning_) {
    if (!learning.is_planned) add_learning(&learning, nullptr);
  }
  workspace_bytes_ = 0;
  for (const Attention& attention : attentions_) {
    if (attention.is_direct) workspace_bytes_ = std::max(workspace_bytes_, kvt_cuda_attend_workspace_bytes(&attention.args));
  }
  const bool has_room = memory_.scratch.has(slots_.bytes()) && memory_.prepared.has(prepared_bytes_) &&
                        memory_.workspace.has(workspace_bytes_) && memory_.staging.has(staging_.bytes()) && constants_.empty() &&
                        n_constant_numbers_ == 0;
  if (!has_room) wait();
  if (is_changed_ && !place()) return false;
  uid_ = graph->uid;
  n_graph_nodes_ = graph->n_nodes;
  first_node_ = graph->nodes[0];
  last_node_ = graph->nodes[graph->n_nodes - 1];
  last_data_ = last_node_->data;
  return true;
}

void CudaPlan::find_attentions(const ggml_cgraph* graph) {
  for (int i = 0; i < graph->n_nodes; ++i) {
    const ggml_tensor* node = graph->nodes[i];
    if (node->op != host().op.flash_attn_ext) continue;
    AttendTask task{};
    if (!make_attend_task(node, &task)) continue;
    Attention* attention = &attentions_.emplace_back();
    attention->node = node;
    attention->task = std::move(task);
    const kvt_attention& shape = attention->task.shape;
    attention->args = attention_args_of(attention->task);
    attention->is_direct = shape.n_queries <= KVT_CUDA_MAX_QUERIES && shape.n_group <= KVT_CUDA_MAX_GROUP &&
                           shape.mask_head_stride == 0 && kvt_cuda_attend_workspace_bytes(&attention->args) > 0;
    if (!attention->is_direct && shape.n_queries == 1) {
      say_once("no GPU attention kernel for head dims " + std::to_string(attention->args.head_dim_k) + "/" +
               std::to_string(attention->args.head_dim_v) + " with " + std::to_string(shape.n_group) +
               " query heads each: correct, but slow, as the cache is decoded for each token");
    }
  }
}

// ---- nodes

void CudaPlan::add_node(ggml_tensor* node) {
  if (may_wait_for_experts(node)) is_capturable_ = false;
  if (!touches_cache(node)) {
    if (!host().is_empty_op(node->op)) flush_rows();
    return add_inner(node);
  }
  is_changed_ = true;
  CacheTensor* written = paged_cache_of(node);
  if (node->op == host().op.set_rows && written != nullptr && can_set_rows(node, *written) && can_encode(node)) {
    return add_set_rows(node, written);
  }
  flush_rows();
  if (n_attentions_done_ < attentions_.size() && attentions_[n_attentions_done_].node == node) {
    return add_attention(&attentions_[n_attentions_done_++]);
  }
  for (const ggml_tensor* src : node->src) {
    Learning* learning = learning_of(paged_cache_of(src));
    if (learning != nullptr) add_learning(learning, nullptr);
  }
  add_generic(node);
}

void CudaPlan::add_inner(ggml_tensor* node) {
  if (steps_.empty() || steps_.back().kind != PlanStep::Kind::kNodes) {
    PlanStep step;
    step.begin = nodes_.size();
    steps_.push_back(std::move(step));
  }
  nodes_.push_back(node);
  steps_.back().end = nodes_.size();
  steps_.back().has_work = steps_.back().has_work || !host().is_empty_op(node->op);
}

void CudaPlan::add_launch(std::function<bool(std::string*)> run) {
  PlanStep step;
  step.kind = PlanStep::Kind::kLaunch;
  step.run = std::move(run);
  steps_.push_back(std::move(step));
}

void CudaPlan::add_host(std::function<bool(std::string*)> run, const bool* is_due) {
  PlanStep step;
  step.kind = PlanStep::Kind::kHost;
  step.run = std::move(run);
  step.is_due = is_due;
  steps_.push_back(std::move(step));
  if (is_due == nullptr) is_capturable_ = false;
}

// Keys and values of a layer follow each other, with nothing but views between them: one launch serves both. Rows of one side wait for
// the other's; whatever else comes first, the rows go before it.
void CudaPlan::add_set_rows(ggml_tensor* node, CacheTensor* cache) {
  if (!waiting_rows_.empty()) {
    const NewRows other = waiting_rows_[0];
    const bool is_pair = other.cache->side() != cache->side() && other.cache->codec_id() == cache->codec_id() &&
                         other.cache->n_heads() == cache->n_heads() && other.node->src[0]->ne[1] == node->src[0]->ne[1];
    if (is_pair) {
      waiting_rows_.clear();
      const NewRows rows{node, cache};
      return cache->side() == KVT_VALUE ? add_rows({other, rows}) : add_rows({rows, other});
    }
    flush_rows();
  }
  waiting_rows_.push_back({node, cache});
}

void CudaPlan::flush_rows() {
  if (waiting_rows_.empty()) return;
  const std::vector<NewRows> rows = std::move(waiting_rows_);
  waiting_rows_.clear();
  add_rows(rows);
}

// Of keys, of values, or of both in this order.
void CudaPlan::add_rows(const std::vector<NewRows>& rows) {
  std::vector<Attention*> with_scratch;
  for (const NewRows& r : rows) {
    new_rows_.push_back(r);
    Attention* reader = next_reader(r.cache);
    const bool has_scratch = reader != nullptr && !reader->is_direct && reader->slots[r.cache->side()] < 0;
    // Before the new rows push older ones out of the exact ones.
    if (has_scratch) add_decode_for(reader, r.cache->side());
    with_scratch.push_back(has_scratch ? reader : nullptr);
  }
  add_encode(rows);
  for (const NewRows& r : rows) {
    if (r.cache->conditioner() == nullptr || !r.cache->conditioner()->is_learning()) continue;
    Attention* reader = next_reader(r.cache);
    Learning* learning = &learning_.emplace_back(Learning{KeyLearning(r.node, r.cache), -1});
    if (reader != nullptr && reader->task.keys.cache == r.cache) learning->keys.set_queries(reader->node->src[0]);
    learning->slot = staging_.claim(learning->keys.staging_bytes());
    add_launch([this, learning](std::string* error) {
      if (learning->keys.copy_rows(stream_, memory_)) return true;
      *error = stream_->last_error();
      return false;
    });
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    if (with_scratch[i] == nullptr) continue;
    CacheTensor* cache = rows[i].cache;
    const AttendTask::Side& side = cache->side() == KVT_KEY ? with_scratch[i]->task.keys : with_scratch[i]->task.values;
    const size_t origin = side.stream * static_cast<size_t>(cache->n_cells()) * cache->row_bytes();
    add_inner(shadow_on(rows[i].node, {{cache, {with_scratch[i]->slots[cache->side()], origin}}}));
  }
}

void CudaPlan::add_encode(const std::vector<NewRows>& rows) {
  std::vector<kvt_cuda_encode_args> args;
  for (const NewRows& r : rows) {
    args.push_back(encode_args_of(*r.cache, r.node));
    if (!has_exact_rows(*r.cache)) continue;
    exact_rows_.push_back(exact_rows_of(*r.cache, 0, 0, true));
    args.back().exact = &exact_rows_.back();
  }
  const auto encode = [this](kvt_cuda_encode_args a) {
    add_launch([this, a](std::string* error) { return check(kvt_cuda_encode(&a, stream_->handle()), "encode", error); });
  };
  const auto begin_means = [this](kvt_cuda_encode_args a, const float* key_scale) {
    add_launch([this, a, key_scale](std::string* error) {
      return check(kvt_cuda_begin_means(&a, key_scale, stream_->handle()), "means of keys", error);
    });
  };
  const CacheTensor* conditioned = rows[0].cache->conditioner() != nullptr ? rows[0].cache : nullptr;
  const std::vector<int64_t> parts = conditioned != nullptr ? parts_of(rows[0]) : std::vector<int64_t>{0};
  if (rows.size() == 2 && parts.size() == 1) {
    if (conditioned != nullptr) begin_means(args[0], conditioned->device()->key_scale());
    const kvt_cuda_encode_args keys = args[0], values = args[1];
    add_launch([this, keys, values](std::string* error) {
      return check(kvt_cuda_append(&keys, &values, stream_->handle()), "append", error);
    });
    return;
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    const kvt_cuda_encode_args part = part_of(args[0], parts[i], i + 1 < parts.size() ? parts[i + 1] : args[0].n_rows);
    if (conditioned != nullptr) begin_means(part, conditioned->device()->key_scale());
    encode(part);
  }
  if (rows.size() == 2) encode(args[1]);
}

// Where the parts of a batch of keys begin: a mean is predicted from the run of cells before, which has to be stored by then.
std::vector<int64_t> CudaPlan::parts_of(const NewRows& keys) {
  constexpr int64_t kMostRowsInOne = KeyMeans::kUnsettledCells;
  const ggml_tensor* index = keys.node->src[1];
  const int64_t n_rows = keys.node->src[0]->ne[1];
  std::vector<int64_t> parts{0};
  // Numbers that the graph itself computes are known too late; no host does that.
  if (n_rows <= kMostRowsInOne || owner_of(index)->op != host().op.none) return parts;
  const Attention* reader = next_reader(keys.cache);
  if (reader != nullptr && reader->task.shape.n_queries <= kMostRowsInOne &&
      int64_t{reader->task.shape.n_queries} * reader->task.shape.n_streams == n_rows) {
    return parts;  // so few of each stream
  }
  depends_on_cells_ = true;
  const auto [found, is_new] = numbers_of_.try_emplace(index->data);
  std::vector<int64_t>& numbers = found->second;
  if (is_new) {
    wait_();
    std::vector<char> bytes(host().ggml_nbytes(index));
    host().ggml_backend_tensor_get(index, bytes.data(), 0, bytes.size());
    numbers = row_numbers(bytes.data(), index->type == GGML_TYPE_I64 ? KVT_CUDA_I64 : KVT_CUDA_I32, n_rows);
  }
  const auto first_row = static_cast<int64_t>(keys.cache->offset_of(keys.node->data) / keys.cache->row_bytes());
  const int64_t n_cells = keys.cache->n_cells();
  std::set<std::pair<int64_t, int64_t>> runs;  // stream and run, of the present part
  for (int64_t i = 0; i < n_rows; ++i) {
    const int64_t row = first_row + numbers[static_cast<size_t>(i)];
    const std::pair<int64_t, int64_t> run{row / n_cells, row % n_cells / KeyMeans::kCells};
    if (runs.count(run) == 0 && runs.count({run.first, run.second - 1}) != 0) {
      parts.push_back(i);
      runs.clear();
    }
    runs.insert(run);
  }
  return parts;
}

CudaPlan::Learning* CudaPlan::learning_of(const CacheTensor* cache) {
  for (Learning& learning : learning_) {
    if (cache != nullptr && learning.keys.keys() == cache && !learning.is_planned) return &learning;
  }
  return nullptr;
}

// What follows the copy of new keys: that of the queries, and for learning at once the work on the host.
void CudaPlan::add_learning(Learning* learning, const ggml_tensor* queries) {
  learning->is_planned = true;
  if (queries == nullptr) {
    learning->keys.set_queries(nullptr);
  } else {
    add_launch([this, learning](std::string* error) {
      if (learning->keys.copy_queries(stream_, memory_)) return true;
      *error = stream_->last_error();
      return false;
    });
  }
  if (!learning->keys.is_at_once()) return;  // its slot stays taken: it is read after the graph
  add_host(
      [this, learning](std::string* error) {
        if (!learning->keys.learn_from_batch(memory_)) {
          *error = kRowOutside;
          return false;
        }
        if (!learning->keys.finish(stream_, &memory_, error)) return false;
        if (stream_->synchronize()) return true;
        *error = stream_->last_error();
        return false;
      },
      nullptr);
  staging_.release(learning->slot);
}

// ---- attention

CudaPlan::Attention* CudaPlan::next_reader(const CacheTensor* cache) {
  for (size_t i = n_attentions_done_; i < attentions_.size(); ++i) {
    if (attentions_[i].task.keys.cache == cache || attentions_[i].task.values.cache == cache) return &attentions_[i];
  }
  return nullptr;
}

// Decodes what an attention reads of one side into a slot of its own, whose first byte stands for the first cell of its first stream.
void CudaPlan::add_decode_for(Attention* attention, kvt_side side) {
  CacheTensor* cache = side == KVT_KEY ? attention->task.keys.cache : attention->task.values.cache;
  const auto stream = static_cast<int64_t>(side == KVT_KEY ? attention->task.keys.stream : attention->task.values.stream);
  const kvt_attention& shape = attention->task.shape;
  const ggml_tensor* view = attention->node->src[1 + side];
  const int64_t n_streams = shape.n_streams;
  const auto first_cell = static_cast<int64_t>(cache->offset_of(view->data) / cache->row_bytes()) % cache->n_cells();
  const int64_t end_cell = first_cell + view->ne[1];
  const size_t stream_bytes = cache->row_bytes() * static_cast<size_t>(cache->n_cells());
  const int slot = slots_.claim(static_cast<size_t>(n_streams - 1) * stream_bytes + static_cast<size_t>(end_cell) * cache->row_bytes());
  attention->slots[side] = slot;
  kvt_cuda_decode_args args = decode_args_of(*cache, stream, n_streams, 0, end_cell, nullptr);
  if (has_exact_rows(*cache)) {
    exact_rows_.push_back(exact_rows_of(*cache, static_cast<size_t>(stream), 0, true));
    args.exact = &exact_rows_.back();
  }
  add_launch([this, args, slot](std::string* error) {
    kvt_cuda_decode_args placed = args;
    placed.dst = memory_.scratch.base() + slots_.offset(slot);
    return check(kvt_cuda_decode(&placed, stream_->handle()), "decode", error);
  });
}

void CudaPlan::add_attention(Attention* attention) {
  const AttendTask& task = attention->task;
  Learning* learning = learning_of(task.keys.cache);
  if (learning != nullptr) add_learning(learning, attention->node->src[0]);
  const bool is_probed = task.takes_recent && task.keys.head == 0 &&
                         task.keys.cache->n_heads() == static_cast<int64_t>(task.shape.n_kv_heads);
  if (is_probed) {
    const size_t bytes = size_t{task.shape.n_kv_heads} * task.shape.n_group * attention->args.head_dim_k * sizeof(float);
    probe_slot_ = probe_slot_ < 0 ? staging_.claim(bytes) : probe_slot_;
    add_host([this, attention](std::string* error) { return probe(attention, error); }, &attention->is_probe_due);
  }
  if (attention->is_direct) return add_direct(attention);

  is_capturable_ = false;
  for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
    if (attention->slots[side] < 0) add_decode_for(attention, side);
  }
  Places places;
  for (const AttendTask::Side* side : {&task.keys, &task.values}) {
    const size_t origin = side->stream * static_cast<size_t>(side->cache->n_cells()) * side->cache->row_bytes();
    places[side->cache] = {attention->slots[side->cache->side()], origin};
  }
  add_inner(shadow_on(attention->node, places));
  for (const int slot : attention->slots) slots_.release(slot);
}

void CudaPlan::add_direct(Attention* attention) {
  const AttendTask& task = attention->task;
  kvt_cuda_attention& a = attention->args;
  if (!task.slopes.empty()) {
    attention->slopes_at = static_cast<ptrdiff_t>(add_constant(task.slopes.data(), task.slopes.size() * sizeof(float)));
  }
  if (a.codec != KVT_CODEC_F16) {
    attention->step = prepared_for(*attention);
    const kvt_cuda_step_args& step = prepared_[static_cast<size_t>(attention->step)].args;
    if (step.n_first > 0 || step.capacity > 0) {
      attention->exact_k = exact_rows_of(*task.keys.cache, task.keys.stream, task.keys.head, step.capacity > 0);
      attention->exact_v = exact_rows_of(*task.values.cache, task.values.stream, task.values.head, step.capacity > 0);
      a.exact_k = &attention->exact_k;
      a.exact_v = &attention->exact_v;
    }
    a.recent_window = step.window;
    a.mask = nullptr;
    a.mask_query_stride = a.mask_head_stride = a.mask_stream_stride = 0;
  }
  add_launch([this, attention](std::string* error) {
    kvt_cuda_attention placed = attention->args;
    if (attention->slopes_at >= 0) placed.slopes = reinterpret_cast<const float*>(memory_.constants.base() + attention->slopes_at);
    if (attention->step >= 0) placed.step = memory_.prepared.base() + prepared_[static_cast<size_t>(attention->step)].offset;
    return check(kvt_cuda_attend(&placed, memory_.workspace.base(), memory_.workspace.block()->bytes(), stream_->handle()),
                 "attention", error);
  });
}

const CudaPlan::NewRows* CudaPlan::new_rows_of(const CacheTensor* cache) const {
  const auto it = std::find_if(new_rows_.rbegin(), new_rows_.rend(), [&](const NewRows& rows) { return rows.cache == cache; });
  return it != new_rows_.rend() ? &*it : nullptr;
}

// What tells which cells a graph writes. Keys and values have numbers of rows of their own, for the same cells (probe looks after that).
const void* CudaPlan::new_cells_of(const CacheTensor* cache) const {
  const NewRows* rows = new_rows_of(cache);
  if (rows == nullptr) return nullptr;
  for (const Attention& attention : attentions_) {
    if (attention.task.values.cache != cache) continue;
    const NewRows* keys = new_rows_of(attention.task.keys.cache);
    if (keys != nullptr && keys->node->src[1]->ne[0] == rows->node->src[1]->ne[0]) return keys->node->src[1];
  }
  return rows->node->src[1];
}

// The step that an attention uses: one of before, if it has the same mask and an equal ring, or a new one.
int CudaPlan::prepared_for(const Attention& attention) {
  const AttendTask& task = attention.task;
  const CacheTensor *keys = task.keys.cache, *values = task.values.cache;
  kvt_cuda_step_args args{};
  args.struct_size = sizeof(args);
  args.n_streams = attention.args.n_streams;
  args.n_queries = attention.args.n_queries;
  args.n_cells = attention.args.max_cells;
  args.mask = attention.args.mask;
  args.mask_query_stride = attention.args.mask_query_stride;
  args.mask_stream_stride = attention.args.mask_stream_stride;
  args.n_first = task.shape.n_exact;
  const uint64_t history = keys->device()->ring_history();
  const void* new_cells = new_cells_of(keys);
  // Keys and values are written together, so their rings are equal; where they are not, newest rows are left to the codes.
  if (task.takes_recent && values->device()->ring_history() == history && new_cells_of(values) == new_cells) {
    args.window = static_cast<uint32_t>(keys->recent()->window());
    args.capacity = static_cast<uint32_t>(keys->device()->capacity());
    args.ring_cells = keys->device()->ring_cells() + task.keys.stream * args.capacity;
    args.ring_next = keys->device()->ring_next() + task.keys.stream;
  }
  const auto is_same = [&](const Prepared& p) {
    kvt_cuda_step_args other = p.args;
    if (args.capacity > 0 && (p.ring_history != history || p.new_cells != new_cells || task.keys.stream != p.stream)) return false;
    other.ring_cells = args.ring_cells;
    other.ring_next = args.ring_next;
    return p.args.capacity == args.capacity && std::memcmp(&other, &args, sizeof(args)) == 0;
  };
  const auto found = std::find_if(prepared_.begin(), prepared_.end(), is_same);
  const auto number = static_cast<int>(found - prepared_.begin());
  Prepared* prepared = found != prepared_.end() ? &*found : nullptr;
  if (prepared == nullptr) {
    prepared = &prepared_.emplace_back();
    prepared->args = args;
    prepared->offset = prepared_bytes_;
    prepared->bytes = kvt_cuda_step_bytes(&args);
    prepared->ring_history = history;
    prepared->new_cells = new_cells;
    prepared->stream = task.keys.stream;
    prepared_bytes_ += aligned(prepared->bytes);
    add_launch([this, prepared](std::string* error) {
      return check(kvt_cuda_prepare_step(&prepared->args, memory_.prepared.base() + prepared->offset, prepared->bytes, stream_->handle()),
                   "preparation of a step", error);
    });
  }
  if (args.capacity > 0) {
    prepared->caches.push_back(keys);
    prepared->caches.push_back(values);
  }
  return number;
}

namespace {

// False if they differ although they were taken for equal.
bool are_rings_as_thought(const CacheTensor& a, const CacheTensor& b) {
  return a.device()->ring_history() != b.device()->ring_history() || a.device()->read_ring_cells() == b.device()->read_ring_cells();
}

}  // namespace

bool CudaPlan::probe(Attention* attention, std::string* error) {
  const AttendTask& task = attention->task;
  const kvt_attention& shape = task.shape;
  CacheTensor* keys = task.keys.cache;
  const size_t head_bytes = size_t{attention->args.head_dim_k} * sizeof(float);
  char* queries = memory_.staging.base() + staging_.offset(probe_slot_);
  const char* last = static_cast<const char*>(attention->node->src[0]->data) + (shape.n_queries - 1) * shape.q_query_stride;
  if (!stream_->copy_to_host(queries, last, shape.q_head_stride, head_bytes, size_t{shape.n_kv_heads} * shape.n_group) ||
      !stream_->synchronize()) {
    *error = stream_->last_error();
    return false;
  }
  if (!are_rings_as_thought(*keys, *task.values.cache)) {
    *error = "the host writes keys and values to different cells; use KVTURBO_RECENT=0";
    return false;
  }
  keys->device()->download(keys, 0, 0);
  const RecentList list = keys->recent()->list_of(nullptr);
  const int32_t* cells = list.cells + task.keys.stream * list.n_entries;
  const auto is_known = [](int32_t cell) { return cell >= 0; };
  if (std::none_of(cells, cells + list.n_entries, is_known)) return true;
  int64_t first = keys->n_cells(), last_cell = 0;
  for (size_t e = 0; e < list.n_entries; ++e) {
    if (cells[e] < 0) continue;
    first = std::min<int64_t>(first, cells[e]);
    last_cell = std::max<int64_t>(last_cell, cells[e]);
  }
  keys->device()->download(keys, static_cast<int64_t>(task.keys.stream) * keys->n_cells() + first, last_cell + 1 - first);
  const double moved = score_error(keys, task.keys.stream, reinterpret_cast<const float*>(queries),
                                   shape.n_group * size_t{attention->args.head_dim_k}, shape.scale);
  keys->drop_host_pages();
  if (moved >= 0) report_score_error(*keys, moved);
  return true;
}

// ---- any other operation

void CudaPlan::add_decode(CacheTensor* cache, int64_t begin, int64_t end, int slot) {
  for (int64_t row = begin; row < end;) {
    const int64_t stream = row / cache->n_cells(), cell = row % cache->n_cells();
    const int64_t n = std::min(end - row, cache->n_cells() - cell);
    kvt_cuda_decode_args args = decode_args_of(*cache, stream, 1, cell, n, nullptr);
    if (has_exact_rows(*cache)) {
      exact_rows_.push_back(exact_rows_of(*cache, static_cast<size_t>(stream), 0, true));
      args.exact = &exact_rows_.back();
    }
    const size_t offset = static_cast<size_t>(row - begin) * cache->row_bytes();
    add_launch([this, args, slot, offset](std::string* error) {
      kvt_cuda_decode_args placed = args;
      placed.dst = memory_.scratch.base() + slots_.offset(slot) + offset;
      return check(kvt_cuda_decode(&placed, stream_->handle()), "decode", error);
    });
    row += n;
  }
}

void CudaPlan::add_generic(ggml_tensor* node) {
  size_t scratch_bytes = 0;
  const std::map<CacheTensor*, RowRange> ranges = row_ranges_of(node, kDeviceAlignment, &scratch_bytes);
  if (!ranges.empty()) {
    say_if_slow(node);
    is_capturable_ = false;
  }
  CacheTensor* written = paged_cache_of(node);
  // Keys that were kept to be stored anew are not those that will be in the cache.
  if (written != nullptr && written->conditioner() != nullptr) written->conditioner()->freeze();
  Places places;
  int before = -1;  // what the written rows were
  for (const auto& [cache, range] : ranges) {
    const size_t bytes = static_cast<size_t>(range.end - range.begin) * cache->row_bytes();
    const int slot = slots_.claim(bytes);
    places[cache] = {slot, static_cast<size_t>(range.begin) * cache->row_bytes()};
    add_decode(cache, range.begin, range.end, slot);
    if (cache != written) continue;
    before = slots_.claim(bytes);
    add_decode(cache, range.begin, range.end, before);
  }
  add_inner(shadow_on(node, places));
  if (written != nullptr) {
    const RowRange& range = ranges.at(written);
    const int64_t n_rows = range.end - range.begin;
    n_constant_numbers_ = std::max(n_constant_numbers_, static_cast<size_t>(n_rows));
    kvt_cuda_encode_args args = encode_args_of(*written, range.begin, n_rows, nullptr, nullptr);
    if (has_exact_rows(*written)) {
      exact_rows_.push_back(exact_rows_of(*written, 0, 0, true));
      args.exact = &exact_rows_.back();
    }
    args.exact_in_place = 1;
    const int after = places.at(written).slot;
    const bool is_conditioned = written->conditioner() != nullptr;
    const float* key_scale = is_conditioned ? written->device()->key_scale() : nullptr;
    for (int64_t begin = 0, end; begin < n_rows; begin = end) {
      // Runs of cells in turn, as each one's mean comes from the run before.
      const int64_t cell = (range.begin + begin) % written->n_cells();
      end = is_conditioned ? std::min({n_rows, begin + KeyMeans::kCells - cell % KeyMeans::kCells, begin + written->n_cells() - cell}) : n_rows;
      add_launch([this, args, before, after, begin, end, key_scale](std::string* error) {
        kvt_cuda_encode_args placed = args;
        placed.src = memory_.scratch.base() + slots_.offset(after);
        placed.unchanged = memory_.scratch.base() + slots_.offset(before);
        placed.cells = memory_.constants.base();
        placed = part_of(placed, begin, end);
        return (key_scale == nullptr || check(kvt_cuda_begin_means(&placed, key_scale, stream_->handle()), "means of keys", error)) &&
               check(kvt_cuda_encode(&placed, stream_->handle()), "encode", error);
      });
    }
    slots_.release(before);
  }
  for (const auto& [cache, where] : places) slots_.release(where.slot);
}

// ---- copies of nodes

ggml_tensor* CudaPlan::add_shadow(const ggml_tensor* node) {
  shadows_.push_back(*node);
  return &shadows_.back();
}

ggml_tensor* CudaPlan::shadow_on(const ggml_tensor* node, const Places& places) {
  ggml_tensor* shadow = add_shadow(node);
  for (ggml_tensor*& src : shadow->src) {
    if (src == nullptr || device_cache_of(src) == nullptr) continue;
    ggml_tensor* source = add_shadow(src);
    source->op = host().op.none;
    std::fill(std::begin(source->src), std::end(source->src), nullptr);
    move(source, places);
    src = source;
  }
  if (device_cache_of(node) != nullptr) move(shadow, places);
  return shadow;
}

void CudaPlan::move(ggml_tensor* shadow, const Places& places) {
  CacheTensor* cache = device_cache_of(shadow);
  const size_t in_image = cache->offset_of(shadow->data);
  if (cache->device_rows() != nullptr) {
    shadow->data = cache->device_rows()->base() + in_image;
    shadow->buffer = cache->device_rows()->buffer();
    shadow->view_src = nullptr;
    shadow->view_offs = 0;
    return;
  }
  const auto it = places.find(cache);
  // A part of the cache without any element: its address is never used.
  const Place where = it != places.end() ? it->second : Place{slots_.claim(1), in_image};
  if (it == places.end()) slots_.release(where.slot);
  moved_.push_back({shadow, where.slot, static_cast<ptrdiff_t>(in_image) - static_cast<ptrdiff_t>(where.origin)});
}

// ---- memory

size_t CudaPlan::add_constant(const void* data, size_t bytes) {
  const size_t at = constants_.size();
  constants_.resize(aligned(at + bytes));
  std::memcpy(constants_.data() + at, data, bytes);
  return at;
}

bool CudaPlan::place() {
  // Numbers of rows come first; slopes were placed as if they did not.
  const size_t number_bytes = aligned(n_constant_numbers_ * sizeof(int32_t));
  if (number_bytes > 0 || !constants_.empty()) {
    std::vector<char> all(number_bytes + constants_.size());
    for (size_t i = 0; i < n_constant_numbers_; ++i) {
      const auto number = static_cast<int32_t>(i);
      std::memcpy(all.data() + i * sizeof(number), &number, sizeof(number));
    }
    std::copy(constants_.begin(), constants_.end(), all.begin() + static_cast<ptrdiff_t>(number_bytes));
    if (!memory_.constants.require(all.size())) return false;
    memory_.constants.block()->write(0, all.size(), all.data());
  }
  for (Attention& attention : attentions_) {
    if (attention.slopes_at >= 0) attention.slopes_at += static_cast<ptrdiff_t>(number_bytes);
  }
  if (!memory_.scratch.require(slots_.bytes()) || !memory_.workspace.require(workspace_bytes_) ||
      !memory_.prepared.require(prepared_bytes_) || !memory_.staging.require(staging_.bytes())) {
    return false;
  }
  for (Learning& learning : learning_) learning.keys.set_staging_offset(staging_.offset(learning.slot));
  for (const Moved& moved : moved_) {
    moved.tensor->data = memory_.scratch.base() + slots_.offset(moved.slot) + moved.offset;
    moved.tensor->buffer = memory_.scratch.buffer();
    moved.tensor->view_src = nullptr;
    moved.tensor->view_offs = 0;
  }
  return true;
}

// ---- from step to step

bool CudaPlan::begin() {
  bool has_host_work = std::any_of(learning_.begin(), learning_.end(), [](const Learning& l) { return l.keys.is_at_once(); });
  for (const NewRows& rows : new_rows_) {
    metrics_count_rows(*rows.cache, rows.node->src[0]->ne[1]);
    if (rows.cache->recent() != nullptr) rows.cache->probe_schedule().add_rows(rows.node->src[0]->ne[1]);
  }
  for (Attention& attention : attentions_) {
    const AttendTask& task = attention.task;
    attention.is_probe_due = task.takes_recent && task.keys.head == 0 &&
                             task.keys.cache->n_heads() == static_cast<int64_t>(task.shape.n_kv_heads) &&
                             task.keys.cache->probe_schedule().is_due();
    has_host_work = has_host_work || attention.is_probe_due;
  }
  return has_host_work;
}

void CudaPlan::end() {
  const uint64_t step = ++g_step;
  for (const NewRows& rows : new_rows_) rows.cache->device()->note_rows(new_cells_of(rows.cache), step);
  has_rest_ = std::any_of(learning_.begin(), learning_.end(), [](const Learning& l) { return !l.keys.is_at_once(); });
}

bool CudaPlan::do_rest(std::string* error) {
  has_rest_ = false;
  // Layers are independent of one another, and the GPU waits meanwhile.
  constexpr size_t kMostThreads = 8;
  std::atomic<size_t> next{0};
  std::atomic<bool> is_inside{true}, is_complete{true};
  const auto work = [&] {
    const bool is_done = completes([&] {
      for (size_t i = next++; i < learning_.size(); i = next++) {
        if (!learning_[i].keys.is_at_once() && !learning_[i].keys.learn_from_batch(memory_)) is_inside = false;
      }
    });
    if (!is_done) is_complete = false;
  };
  const bool are_many = learning_[0].keys.n_rows() >= static_cast<int64_t>(KeyConditioner::kEnoughRows);
  const size_t n_threads = are_many ? std::min<size_t>({kMostThreads, learning_.size(), std::thread::hardware_concurrency()}) : 1;
  std::vector<std::thread> threads;
  completes([&] {  // with fewer threads than asked for it takes longer
    while (threads.size() + 1 < n_threads) threads.emplace_back(work);
  });
  work();
  for (std::thread& thread : threads) thread.join();
  if (!is_inside || !is_complete) {
    *error = is_inside ? "no memory to learn the conditioning of keys" : kRowOutside;
    return false;
  }
  for (Learning& learning : learning_) {
    if (!learning.keys.is_at_once() && !learning.keys.finish(stream_, &memory_, error)) return false;
  }
  if (stream_->synchronize()) return true;
  *error = stream_->last_error();
  return false;
}

}  // namespace kvt::plugin
