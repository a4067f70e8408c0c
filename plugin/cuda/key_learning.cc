#include "key_learning.h"

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "cuda_calls.h"

namespace kvt::plugin {
namespace {

// A batch of more rows is noted at once: to keep copies of many layers would take much pinned memory.
constexpr int64_t kMostRowsLater = KVT_CUDA_MAX_QUERIES;

bool is_learning_due(const CacheTensor& keys, int64_t n_new) {
  return keys.conditioner()->will_learn(static_cast<size_t>(n_new)) || n_new > kMostRowsLater;
}

}  // namespace

KeyLearning::KeyLearning(const ggml_tensor* set_rows, CacheTensor* keys)
    : set_rows_(set_rows), keys_(keys), is_at_once_(is_learning_due(*keys, set_rows->src[0]->ne[1])) {}

bool KeyLearning::is_up_to_date() const {
  return keys_->conditioner()->is_learning() && is_at_once_ == is_learning_due(*keys_, set_rows_->src[0]->ne[1]);
}

size_t KeyLearning::rows_bytes() const { return static_cast<size_t>(set_rows_->src[0]->ne[1] * keys_->n_values()) * sizeof(float); }

size_t KeyLearning::index_bytes() const { return static_cast<size_t>(set_rows_->src[1]->ne[0]) * sizeof(int64_t); }

size_t KeyLearning::staging_bytes() const {
  const size_t n_query_values =
      queries_ != nullptr ? static_cast<size_t>(queries_->ne[0] * queries_->ne[1] * queries_->ne[2] * queries_->ne[3]) : 0;
  return round_up(rows_bytes() + index_bytes() + n_query_values * sizeof(float), kDeviceAlignment);
}

bool KeyLearning::copy_rows(GpuStream* stream, const PlanMemory& memory) const {
  const ggml_tensor *rows = set_rows_->src[0], *index = set_rows_->src[1];
  char* to = memory.staging.base() + staging_offset_;
  return stream->copy_to_host(to, rows->data, rows->nb[1], static_cast<size_t>(keys_->n_values()) * sizeof(float),
                              static_cast<size_t>(rows->ne[1])) &&
         stream->copy_to_host(to + rows_bytes(), index->data, 0, static_cast<size_t>(index->ne[0]) * index->nb[0], 1);
}

bool KeyLearning::copy_queries(GpuStream* stream, const PlanMemory& memory) const {
  if (queries_ == nullptr) return true;
  const ggml_tensor& q = *queries_;
  const size_t head_bytes = static_cast<size_t>(q.ne[0]) * sizeof(float);
  char* to = memory.staging.base() + staging_offset_ + rows_bytes() + index_bytes();
  for (int64_t s = 0; s < q.ne[3]; ++s) {
    for (int64_t i = 0; i < q.ne[1]; ++i, to += head_bytes * static_cast<size_t>(q.ne[2])) {
      const char* from = static_cast<const char*>(q.data) + static_cast<size_t>(s) * q.nb[3] + static_cast<size_t>(i) * q.nb[1];
      if (!stream->copy_to_host(to, from, q.nb[2], head_bytes, static_cast<size_t>(q.ne[2]))) return false;
    }
  }
  return true;
}

bool KeyLearning::take_note(const PlanMemory& memory) const {
  KeyConditioner* conditioner = keys_->conditioner();
  if (!conditioner->is_learning()) return true;
  const ggml_tensor* index = set_rows_->src[1];
  const char* rows = memory.staging.base() + staging_offset_;
  const char* numbers = rows + rows_bytes();
  const auto first_row = static_cast<int64_t>(keys_->offset_of(set_rows_->data) / keys_->row_bytes());
  for (int64_t i = 0; i < index->ne[0]; ++i) {
    int64_t row = 0;
    if (index->type == GGML_TYPE_I64) {
      std::memcpy(&row, numbers + static_cast<size_t>(i) * sizeof(int64_t), sizeof(int64_t));
    } else {
      int32_t narrow = 0;
      std::memcpy(&narrow, numbers + static_cast<size_t>(i) * sizeof(int32_t), sizeof(int32_t));
      row = narrow;
    }
    row += first_row;
    if (row < 0 || row >= keys_->n_rows()) return false;
    conditioner->keep_row(reinterpret_cast<const float*>(rows) + i * keys_->n_values(), row);
  }
  conditioner->set_stored();  // by the graph's own encode
  if (queries_ == nullptr) return true;
  const auto* query = reinterpret_cast<const float*>(numbers + index_bytes());
  const int64_t n_group = queries_->ne[2] / keys_->n_heads();
  for (int64_t i = 0; i < queries_->ne[1] * queries_->ne[3]; ++i) {
    for (int64_t h = 0; h < queries_->ne[2]; ++h, query += queries_->ne[0]) conditioner->add_query(h / n_group, query);
  }
  return true;
}

bool KeyLearning::learn(GpuStream* stream, PlanMemory* memory, std::string* error) const {
  KeyConditioner* conditioner = keys_->conditioner();
  if (!conditioner->is_learning()) return true;
  const size_t first = conditioner->learn();
  keys_->device()->upload_conditioning(*keys_);
  // A cell that was written twice is stored as it was last.
  std::map<int64_t, size_t> last_of;
  for (size_t i = first; i < conditioner->n_kept(); ++i) last_of[conditioner->kept_place(i)] = i;
  const size_t width = static_cast<size_t>(keys_->n_values());
  std::vector<float> rows(last_of.size() * width);
  std::vector<int64_t> places;
  for (const auto& [place, i] : last_of) {
    std::memcpy(rows.data() + places.size() * width, conditioner->kept_row(i), width * sizeof(float));
    places.push_back(place);
  }
  const size_t rows_end = rows.size() * sizeof(float);
  if (!places.empty()) {
    if (!memory->kept_rows.require(rows_end + places.size() * sizeof(int64_t))) {
      *error = "no GPU memory for keys that are encoded anew";
      return false;
    }
    memory->kept_rows.block()->write(0, rows_end, rows.data());
    memory->kept_rows.block()->write(rows_end, places.size() * sizeof(int64_t), places.data());
    ggml_tensor source{}, index{}, set_rows = *set_rows_;
    source.ne[1] = static_cast<int64_t>(places.size());
    source.nb[1] = width * sizeof(float);
    source.data = memory->kept_rows.base();
    index.type = GGML_TYPE_I64;
    index.data = memory->kept_rows.base() + rows_end;
    set_rows.data = keys_->image();  // places are rows of the whole cache
    set_rows.src[0] = &source;
    set_rows.src[1] = &index;
    const kvt_cuda_encode_args args = encode_args_of(*keys_, &set_rows);
    const kvt_status status = kvt_cuda_encode(&args, stream->handle());
    if (status != KVT_OK || !stream->synchronize()) {
      *error = status != KVT_OK ? kvt_status_string(status) : stream->last_error();
      return false;
    }
  }
  conditioner->finish_pass();
  return true;
}

}  // namespace kvt::plugin
