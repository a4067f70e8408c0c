#include "cache_tasks.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cache_buffer.h"
#include "cache_image.h"
#include "cache_rows.h"
#include "fit_probe.h"
#include "metrics.h"
#include "startup_report.h"

namespace kvt::plugin {

static_assert(RecentRows::kMostPinned <= KVT_MAX_EXACT);

// ---- SET_ROWS

bool can_set_rows(const ggml_tensor* node, const CacheTensor& cache) {
  const ggml_tensor* rows = node->src[0];
  const ggml_tensor* index = node->src[1];
  return node->ne[0] == cache.n_values() && node->nb[1] == cache.row_bytes() && node->ne[2] == 1 && node->ne[3] == 1 &&
         cache.offset_of(node->data) % cache.row_bytes() == 0 && rows->type == GGML_TYPE_F32 && rows->nb[0] == sizeof(float) &&
         rows->nb[1] % sizeof(float) == 0 && rows->ne[2] == 1 && rows->ne[3] == 1 &&
         (index->type == GGML_TYPE_I64 || index->type == GGML_TYPE_I32);
}

namespace {

int64_t row_index(const ggml_tensor* index, int64_t i) {
  const char* at = static_cast<const char*>(index->data) + static_cast<size_t>(i) * index->nb[0];
  return index->type == GGML_TYPE_I64 ? *reinterpret_cast<const int64_t*>(at) : *reinterpret_cast<const int32_t*>(at);
}

// Keys that come while their conditioning is being learnt.
void keep_rows(const SetRowsTask* task) {
  const ggml_tensor* rows = task->node->src[0];
  for (int64_t i = 0; i < rows->ne[1]; ++i) {
    const int64_t row = task->first_row + row_index(task->node->src[1], i);
    if (row < 0 || row >= task->cache->n_rows()) {
      task->shared->has_failed = true;
      return;
    }
    task->cache->conditioner()->keep_row(
        reinterpret_cast<const float*>(static_cast<const char*>(rows->data) + static_cast<size_t>(i) * rows->nb[1]), row);
  }
}

}  // namespace

void find_stages(SetRowsTask* task) {
  task->later_stages.clear();
  task->begins_mean = false;
  const KeyConditioner* conditioner = task->cache->conditioner();
  if (conditioner == nullptr || task->awaits_learning) return;
  const ggml_tensor* index = task->node->src[1];
  // Rows that the graph itself computes are known too late; no host does that. Their means are made in front of all.
  task->begins_mean = owner_of(index)->op != host().op.none;
  if (task->begins_mean) return;
  std::pair<int64_t, int64_t> newest{-1, -1};  // stream and run whose mean is begun last
  for (int64_t i = 0; i < task->node->src[0]->ne[1]; ++i) {
    const int64_t row = task->first_row + row_index(index, i);
    if (row < 0 || row >= task->cache->n_rows()) return;  // run_set_rows reports it
    const int64_t stream = row / task->cache->n_cells(), cell = row % task->cache->n_cells();
    const std::pair<int64_t, int64_t> at{stream, cell / KeyMeans::kCells};
    if (at == newest || !conditioner->means().is_new(stream, cell)) continue;
    newest = at;
    if (i == 0) {
      task->begins_mean = true;
    } else {
      task->later_stages.push_back(i);
    }
  }
}

void run_begin_means(ggml_tensor*, int part, int n_parts, void* user_data) {
  const auto* stage = static_cast<const SetRowsStage*>(user_data);
  const SetRowsTask& task = *stage->task;
  CacheTensor* cache = task.cache;
  for (int64_t i = stage->begin; i < stage->end; ++i) {
    const int64_t row = task.first_row + row_index(task.node->src[1], i);
    if (row < 0 || row >= cache->n_rows()) return;  // run_set_rows reports it
    for (int64_t head = part; head < cache->n_heads(); head += n_parts) begin_mean(cache, row / cache->n_cells(), head, row % cache->n_cells());
  }
}

void plan_set_rows(SetRowsTask* task) {
  RecentRows* recent = task->cache->recent();
  const ggml_tensor* index = task->node->src[1];
  task->has_batch = false;
  if (recent == nullptr) return;
  // Rows that the graph itself computes are known too late; no host does that.
  bool is_known = owner_of(index)->op == host().op.none;
  const auto n = static_cast<size_t>(task->node->src[0]->ne[1]);
  task->batch.rows.resize(n);
  for (size_t i = 0; is_known && i < n; ++i) {
    const int64_t row = task->first_row + row_index(index, static_cast<int64_t>(i));
    is_known = row >= 0 && row < task->cache->n_rows();
    task->batch.rows[i].stream = static_cast<int32_t>(row / task->cache->n_cells());
    task->batch.rows[i].cell = static_cast<int32_t>(row % task->cache->n_cells());
  }
  if (!is_known) return recent->clear();
  BatchSight sight;
  const ggml_tensor* mask = task->mask;
  if (mask != nullptr && n == static_cast<size_t>(task->n_queries * mask->ne[3])) {
    sight = {static_cast<const char*>(mask->data), mask->nb[1], mask->ne[3] == 1 ? 0 : mask->nb[3], static_cast<size_t>(task->n_queries),
             static_cast<size_t>(mask->ne[0])};
  }
  // A stream of its own begins with its sequence: those rows are kept as the first ones.
  const bool is_shared = task->cache->n_rows() == task->cache->n_cells();
  recent->plan_batch(&task->batch, sight, is_shared ? static_cast<size_t>(task->cache->n_exact()) : 0);
  task->has_batch = true;
}

void begin_set_rows(SetRowsTask* task) noexcept {
  if (!task->has_batch) return;
  task->cache->recent()->begin_batch(&task->batch);
  task->cache->probe_schedule().add_rows(task->node->src[0]->ne[1]);
}

// A page has one writer at a time (format.md 4.2), so a share is the pages whose number, plus the head, falls to it.
// Neighbouring rows of one owner go into one call.
void run_set_rows(ggml_tensor*, int part, int n_parts, void* user_data) {
  const OperationTimer timer(counters().encode_ns, part);
  const auto* stage = static_cast<const SetRowsStage*>(user_data);
  SetRowsTask* task = stage->task;
  CacheTensor* cache = task->cache;
  const ggml_tensor* rows = task->node->src[0];
  const ggml_tensor* index = task->node->src[1];
  const size_t src_stride = rows->nb[1] / sizeof(float);
  const bool is_first = stage->begin == 0;
  for (int64_t head = part; is_first && task->has_batch && head < cache->n_heads(); head += n_parts) {
    cache->recent()->write_batch(&task->batch, static_cast<size_t>(head),
                                 static_cast<const float*>(rows->data) + head * cache->head_dim(), src_stride);
  }
  if (is_first && cache->conditioner() != nullptr && cache->conditioner()->is_learning()) {
    if (part == 0) keep_rows(task);
    if (task->awaits_learning) return;
    if (part == 0) cache->conditioner()->set_stored();
  }
  int64_t cells[kMaxRowsAtOnce];
  for (int64_t head = 0; head < cache->n_heads(); ++head) {
    int64_t run_begin = 0, run_stream = 0, n_run = 0;
    const auto flush = [&] {
      if (n_run == 0) return;
      const float* src =
          reinterpret_cast<const float*>(static_cast<const char*>(rows->data) + static_cast<size_t>(run_begin) * rows->nb[1]);
      encode_cells(cache, run_stream, head, src + head * cache->head_dim(), src_stride, static_cast<size_t>(n_run), cells);
      n_run = 0;
    };
    for (int64_t i = stage->begin; i < stage->end; ++i) {
      const int64_t row = task->first_row + row_index(index, i);
      if (row < 0 || row >= cache->n_rows()) {
        task->shared->has_failed = true;
        return;
      }
      const int64_t stream = row / cache->n_cells(), cell = row % cache->n_cells();
      if ((cell / KVT_PAGE_TOKENS + head) % n_parts != part) {
        flush();
        continue;
      }
      if (n_run == kMaxRowsAtOnce || (n_run > 0 && stream != run_stream)) flush();
      if (n_run == 0) {
        run_begin = i;
        run_stream = stream;
      }
      cells[n_run++] = cell;
    }
    flush();
  }
}

// ---- learning of key conditioning, between SET_ROWS and the first operation that reads the keys

namespace {

void add_queries(const ggml_tensor& q, const CacheTensor& keys, KeyConditioner* conditioner) {
  const int64_t n_group = q.ne[2] / keys.n_heads();
  for (int64_t s = 0; s < q.ne[3]; ++s) {
    for (int64_t i = 0; i < q.ne[1]; ++i) {
      for (int64_t h = 0; h < q.ne[2]; ++h) {
        const size_t at = static_cast<size_t>(i) * q.nb[1] + static_cast<size_t>(h) * q.nb[2] + static_cast<size_t>(s) * q.nb[3];
        conditioner->add_query(h / n_group, reinterpret_cast<const float*>(static_cast<const char*>(q.data) + at));
      }
    }
  }
}

}  // namespace

void run_learn(ggml_tensor*, int part, int, void* user_data) {
  auto* task = static_cast<LearnTask*>(user_data);
  KeyConditioner* conditioner = task->keys->conditioner();
  if (part != 0 || !conditioner->is_learning()) return;
  if (task->queries != nullptr) add_queries(*task->queries, *task->keys, conditioner);
  task->first_to_store = conditioner->learn();
}

void run_store_kept(ggml_tensor*, int part, int n_parts, void* user_data) {
  const OperationTimer timer(counters().encode_ns, part);
  const auto* task = static_cast<const LearnTask*>(user_data);
  CacheTensor* keys = task->keys;
  const KeyConditioner* conditioner = keys->conditioner();
  if (!conditioner->is_learning()) return;
  for (size_t i = task->first_to_store; i < conditioner->n_kept(); ++i) {
    const int64_t row = conditioner->kept_place(i), stream = row / keys->n_cells(), cell = row % keys->n_cells();
    for (int64_t head = 0; head < keys->n_heads(); ++head) {
      if ((cell / KVT_PAGE_TOKENS + head) % n_parts != part) continue;
      const float* key = conditioner->kept_row(i) + head * keys->head_dim();
      encode_cells(keys, stream, head, key, static_cast<size_t>(keys->head_dim()), 1, &cell);
    }
  }
}

void run_finish_learning(ggml_tensor*, int part, int, void* user_data) {
  KeyConditioner* conditioner = static_cast<const LearnTask*>(user_data)->keys->conditioner();
  if (part == 0 && conditioner->is_learning()) conditioner->finish_pass();
}

// ---- FLASH_ATTN_EXT

namespace {

// A view [head_dim, n_cells, n_heads, n_streams] of a cache in f16 strides -> where its first page is.
struct PagedView {
  CacheTensor* cache;
  const char* first_page;
  int64_t stream, head, first_cell;  // the first ones
};

bool find_paged_view(const ggml_tensor* t, PagedView* view) {
  CacheTensor* cache = cache_tensor_of(t);
  if (cache == nullptr || cache->state() != CacheTensor::State::kPages || t->type != GGML_TYPE_F16) return false;
  const size_t head_bytes = static_cast<size_t>(cache->head_dim()) * sizeof(ggml_fp16_t);
  const size_t stream_bytes = cache->row_bytes() * static_cast<size_t>(cache->n_cells());
  const size_t offset = cache->offset_of(t->data);
  const size_t row = offset / cache->row_bytes(), column = offset % cache->row_bytes();
  const auto stream = static_cast<int64_t>(row) / cache->n_cells(), cell = static_cast<int64_t>(row) % cache->n_cells();
  const bool is_ours = t->ne[0] == cache->head_dim() && t->nb[0] == sizeof(ggml_fp16_t) && t->nb[1] == cache->row_bytes() &&
                       (t->ne[2] == 1 || t->nb[2] == head_bytes) && (t->ne[3] == 1 || t->nb[3] == stream_bytes) &&
                       column % head_bytes == 0 && cell % KeyMeans::kCells == 0 && cell + t->ne[1] <= cache->n_cells();
  if (!is_ours) return false;
  view->cache = cache;
  view->first_page = cache->head_pages(stream, static_cast<int64_t>(column / head_bytes)) +
                     static_cast<size_t>(cell / KVT_PAGE_TOKENS) * cache->page_stride();
  view->first_cell = cell;
  view->stream = stream;
  view->head = static_cast<int64_t>(column / head_bytes);
  return true;
}

float float_param(const ggml_tensor* node, int i) {
  float value;
  std::memcpy(&value, node->op_params + i, sizeof(value));
  return value;
}

// ALiBi, as ggml has it.
std::vector<float> alibi_slopes(int64_t n_heads, float max_bias) {
  if (max_bias <= 0.0f) return {};
  const auto n_heads_log2 = static_cast<int64_t>(1) << static_cast<int>(std::floor(std::log2(static_cast<double>(n_heads))));
  const float m0 = std::pow(2.0f, -max_bias / static_cast<float>(n_heads_log2));
  const float m1 = std::pow(2.0f, -(max_bias / 2.0f) / static_cast<float>(n_heads_log2));
  std::vector<float> slopes(static_cast<size_t>(n_heads));
  for (int64_t h = 0; h < n_heads; ++h) {
    slopes[static_cast<size_t>(h)] = h < n_heads_log2 ? std::pow(m0, static_cast<float>(h + 1))
                                                      : std::pow(m1, static_cast<float>(2 * (h - n_heads_log2) + 1));
  }
  return slopes;
}

}  // namespace

bool make_attend_task(const ggml_tensor* node, AttendTask* task) {
  const ggml_tensor* q = node->src[0];
  const ggml_tensor* k = node->src[1];
  const ggml_tensor* v = node->src[2];
  const ggml_tensor* mask = node->src[3];
  const ggml_tensor* sinks = node->src[4];
  PagedView keys{}, values{};
  if (!find_paged_view(k, &keys) || !find_paged_view(v, &values)) return false;
  const int64_t n_heads = q->ne[2], n_streams = q->ne[3];
  const bool is_plain = q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && node->type == GGML_TYPE_F32 &&
                        node->nb[0] == sizeof(float) && q->ne[0] == k->ne[0] && node->ne[0] == v->ne[0] &&
                        k->ne[1] == v->ne[1] && k->ne[2] == v->ne[2] && n_heads % k->ne[2] == 0 && k->ne[3] == n_streams &&
                        v->ne[3] == n_streams;
  if (!is_plain) return false;
  const bool is_plain_mask =
      mask == nullptr || (mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(ggml_fp16_t) &&
                          (mask->ne[2] == 1 || mask->ne[2] == n_heads) && (mask->ne[3] == 1 || mask->ne[3] == n_streams));
  const bool are_plain_sinks = sinks == nullptr || (sinks->type == GGML_TYPE_F32 && sinks->nb[0] == sizeof(float));
  if (!is_plain_mask || !are_plain_sinks) return false;
  task->node = node;
  task->codec = keys.cache->codec();
  if (values.cache->codec() != task->codec) return false;
  task->slopes = alibi_slopes(n_heads, float_param(node, 1));

  kvt_attention& a = task->shape;
  a = {};
  a.struct_size = sizeof(a);
  a.n_streams = static_cast<uint32_t>(n_streams);
  a.n_kv_heads = static_cast<uint32_t>(k->ne[2]);
  a.n_group = static_cast<uint32_t>(n_heads / k->ne[2]);
  a.n_queries = static_cast<uint32_t>(q->ne[1]);
  a.n_cells = static_cast<uint32_t>(k->ne[1]);
  a.k_pages = keys.first_page;
  a.k_page_stride = keys.cache->page_stride();
  a.k_head_stride = keys.cache->head_stride();
  a.k_stream_stride = keys.cache->stream_stride();
  a.v_pages = values.first_page;
  a.v_page_stride = values.cache->page_stride();
  a.v_head_stride = values.cache->head_stride();
  a.v_stream_stride = values.cache->stream_stride();
  a.q_query_stride = q->nb[1];
  a.q_head_stride = q->nb[2];
  a.q_stream_stride = q->nb[3];
  if (mask != nullptr) {
    a.mask_query_stride = mask->nb[1];
    a.mask_head_stride = mask->ne[2] == 1 ? 0 : mask->nb[2];
    a.mask_stream_stride = mask->ne[3] == 1 ? 0 : mask->nb[3];
  }
  if (const KeyConditioner* conditioner = keys.cache->conditioner()) {
    a.key_scale = conditioner->scale() + keys.head * k->ne[0];
    a.key_scale_head_stride = static_cast<size_t>(k->ne[0]) * sizeof(float);
    const KeyMeans& means = conditioner->means();
    a.mean_cells = KeyMeans::kCells;
    a.key_mean_head_stride = static_cast<size_t>(means.n_means() * k->ne[0]);
    a.key_mean_stream_stride = a.key_mean_head_stride * static_cast<size_t>(keys.cache->n_heads());
    a.key_mean_unit_head_stride = static_cast<size_t>(means.n_means()) * sizeof(float);
    a.key_mean_unit_stream_stride = a.key_mean_unit_head_stride * static_cast<size_t>(keys.cache->n_heads());
    a.key_mean = means.codes(keys.stream, keys.head, keys.first_cell);
    a.key_mean_unit = means.all_units() + (keys.stream * keys.cache->n_heads() + keys.head) * means.n_means() + keys.first_cell / KeyMeans::kCells;
  }
  const bool has_exact_rows = keys.first_cell == 0 && values.first_cell == 0;
  if (has_exact_rows && keys.cache->n_exact() > 0) {
    a.n_exact = static_cast<uint32_t>(keys.cache->n_exact());
    a.exact_k = keys.cache->exact_row(keys.stream, keys.head, 0);
    a.exact_k_head_stride = keys.cache->exact_head_stride();
    a.exact_k_stream_stride = keys.cache->exact_stream_stride();
    a.exact_v = values.cache->exact_row(values.stream, values.head, 0);
    a.exact_v_head_stride = values.cache->exact_head_stride();
    a.exact_v_stream_stride = values.cache->exact_stream_stride();
  }
  task->keys = {keys.cache, static_cast<size_t>(keys.stream), static_cast<size_t>(keys.head), nullptr};
  task->values = {values.cache, static_cast<size_t>(values.stream), static_cast<size_t>(values.head), nullptr};
  task->takes_recent = has_exact_rows && keys.cache->recent() != nullptr && values.cache->recent() != nullptr;
  a.scale = float_param(node, 0);
  a.logit_softcap = float_param(node, 2);
  a.out_head_stride = node->nb[1];
  a.out_query_stride = node->nb[2];
  a.out_stream_stride = node->nb[3];
  a.q = static_cast<const float*>(q->data);
  a.out = static_cast<float*>(node->data);
  return kvt_attend_workspace_bytes(task->codec, &a, 1) > 0;  // 0: the library cannot do it, for instance so large a group
}

void plan_attend(AttendTask* task) {
  if (!task->takes_recent) return;
  size_t most = 0;
  for (const AttendTask::Side& side : {task->keys, task->values}) most = std::max(most, side.cache->recent()->most_entries(side.batch()));
  task->recent_cells.reserve(task->shape.n_streams * most);
}

void begin_attend(AttendTask* task) {
  kvt_attention* a = &task->shape;
  a->n_recent = 0;
  task->is_probe_due = false;
  if (!task->takes_recent) return;
  task->is_probe_due = task->keys.head == 0 && task->keys.cache->n_heads() == a->n_kv_heads && task->keys.cache->probe_schedule().is_due();
  const AttendTask::Side sides[2] = {task->keys, task->values};
  RecentList lists[2];
  for (int i = 0; i < 2; ++i) lists[i] = sides[i].cache->recent()->list_of(sides[i].batch());
  const size_t n = lists[0].n_entries;
  if (lists[1].n_entries != n) return;
  // Keys and values are written together, so the lists agree; an entry where they should not is left to the codes.
  const int32_t *key_cells = lists[0].cells + task->keys.stream * n, *value_cells = lists[1].cells + task->values.stream * n;
  task->recent_cells.resize(a->n_streams * n);
  for (size_t e = 0; e < task->recent_cells.size(); ++e) task->recent_cells[e] = key_cells[e] == value_cells[e] ? key_cells[e] : -1;
  const auto rows_of = [&](int side, int64_t head_dim, const uint16_t** rows, size_t* head_stride, size_t* stream_stride) {
    *head_stride = n * static_cast<size_t>(head_dim) * sizeof(ggml_fp16_t);
    *stream_stride = *head_stride * static_cast<size_t>(sides[side].cache->n_heads());
    *rows = lists[side].rows + (sides[side].stream * *stream_stride + sides[side].head * *head_stride) / sizeof(ggml_fp16_t);
  };
  rows_of(0, sides[0].cache->head_dim(), &a->recent_k, &a->recent_k_head_stride, &a->recent_k_stream_stride);
  rows_of(1, sides[1].cache->head_dim(), &a->recent_v, &a->recent_v_head_stride, &a->recent_v_stream_stride);
  a->n_recent = static_cast<uint32_t>(n);
  a->recent_pinned = static_cast<uint32_t>(lists[0].n_pinned);
  a->recent_window = static_cast<uint32_t>(sides[0].cache->recent()->window());
  a->recent_cells = task->recent_cells.data();
  a->recent_cells_stream_stride = n * sizeof(int32_t);
  // Without a batch of exactly these queries, any entry may be a query's newest: what it does not see is passed over.
  const RecentRows::Batch* batch = task->keys.batch();
  const bool are_queries = batch != nullptr && batch->rows.size() == size_t{a->n_queries} * a->n_streams;
  a->recent_own = static_cast<uint32_t>(are_queries ? batch->first_entry : n - 1);
}

namespace {

// With the last query of the first stream.
void probe(const AttendTask& task) {
  const kvt_attention& a = task.shape;
  const char* queries = static_cast<const char*>(task.node->src[0]->data) + (a.n_queries - 1) * a.q_query_stride;
  const double error = score_error(task.keys.cache, task.keys.stream, reinterpret_cast<const float*>(queries),
                                   a.n_group * a.q_head_stride / sizeof(float), a.scale);
  if (error >= 0) report_score_error(*task.keys.cache, error);
}

}  // namespace

void run_attend(ggml_tensor*, int part, int n_parts, void* user_data) {
  const auto* task = static_cast<const AttendTask*>(user_data);
  if (part == 0 && task->is_probe_due) probe(*task);
  if (part == 0 && task->teaches) add_queries(*task->node->src[0], *task->keys.cache, task->keys.cache->conditioner());
  const OperationTimer timer(counters().attend_ns, part);
  kvt_attention a = task->shape;
  a.q = static_cast<const float*>(task->node->src[0]->data);
  a.mask = task->node->src[3] != nullptr ? static_cast<const uint16_t*>(task->node->src[3]->data) : nullptr;
  a.sinks = task->node->src[4] != nullptr ? static_cast<const float*>(task->node->src[4]->data) : nullptr;
  a.slopes = task->slopes.empty() ? nullptr : task->slopes.data();
  a.out = static_cast<float*>(task->node->data);
  const bool is_done = n_parts <= task->shared->n_threads &&
                       kvt_attend_thread(task->codec, &a, task->shared->attend_workspace, static_cast<uint32_t>(part),
                                         static_cast<uint32_t>(n_parts)) == KVT_OK;
  if (!is_done) task->shared->has_failed = true;
}

// ---- any other operation

void run_image_decode(ggml_tensor*, int part, int n_parts, void* user_data) {
  const auto* task = static_cast<const ImageTask*>(user_data);
  auto* rows = reinterpret_cast<ggml_fp16_t*>(task->shared->scratch + task->scratch_offset);
  image_decode(task->cache, task->first_row, task->n_rows, rows, part, n_parts);
}

void run_image_encode(ggml_tensor*, int part, int n_parts, void* user_data) {
  const auto* task = static_cast<const ImageTask*>(user_data);
  // Keys that were kept to be stored anew are not those that are in the cache now.
  if (part == 0 && task->cache->conditioner() != nullptr) task->cache->conditioner()->freeze();
  const auto* rows = reinterpret_cast<const ggml_fp16_t*>(task->shared->scratch + task->scratch_offset);
  image_encode(task->cache, task->first_row, task->n_rows, rows, part, n_parts);
}

}  // namespace kvt::plugin
