#include "key_learning.h"

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "cuda_calls.h"

namespace kvt::plugin {
namespace {

constexpr size_t kMostBytesLater = size_t{4} << 20;  // of a layer's keys
constexpr int64_t kMostQueries = 32;                 // of a stream
// Estimates from fewer rows than the exact ones beside the codes are hardly used: there is one from the very first rows, should the
// cache be saved so early, and then none until there are so many.
constexpr size_t kFewestRows = 32;

}  // namespace

KeyLearning::KeyLearning(const ggml_tensor* set_rows, CacheTensor* keys)
    : keys_(keys), n_rows_(set_rows->src[0]->ne[1]), new_rows_(encode_args_of(*keys, set_rows)) {}

bool KeyLearning::is_at_once() const { return rows_bytes() > kMostBytesLater; }

void KeyLearning::set_queries(const ggml_tensor* q) {
  n_streams_ = 0;
  if (q == nullptr) return;
  const int64_t step = (q->ne[1] + kMostQueries - 1) / kMostQueries;
  head_dim_ = q->ne[0];
  n_queries_ = (q->ne[1] + step - 1) / step;
  n_heads_ = q->ne[2];
  n_streams_ = q->ne[3];
  queries_ = static_cast<const char*>(q->data) + static_cast<size_t>((q->ne[1] - 1) % step) * q->nb[1];
  query_stride_ = static_cast<size_t>(step) * q->nb[1];
  head_stride_ = q->nb[2];
  stream_stride_ = q->nb[3];
}

size_t KeyLearning::staging_bytes() const {
  const size_t query_bytes = static_cast<size_t>(head_dim_ * n_heads_ * n_queries_ * n_streams_) * sizeof(float);
  return round_up(rows_bytes() + index_bytes() + query_bytes, kDeviceAlignment);
}

bool KeyLearning::copy_rows(GpuStream* stream, const PlanMemory& memory) const {
  char* to = memory.staging.base() + staging_offset_;
  const size_t number_bytes = new_rows_.cells_type == KVT_CUDA_I64 ? sizeof(int64_t) : sizeof(int32_t);
  return stream->copy_to_host(to, new_rows_.src, new_rows_.src_row_stride, static_cast<size_t>(keys_->n_values()) * sizeof(float),
                              static_cast<size_t>(n_rows_)) &&
         stream->copy_to_host(to + rows_bytes(), new_rows_.cells, 0, static_cast<size_t>(n_rows_) * number_bytes, 1);
}

bool KeyLearning::copy_queries(GpuStream* stream, const PlanMemory& memory) const {
  const size_t head_bytes = static_cast<size_t>(head_dim_) * sizeof(float), all_heads = head_bytes * static_cast<size_t>(n_heads_);
  const auto n_queries = static_cast<size_t>(n_queries_);
  char* to = memory.staging.base() + staging_offset_ + rows_bytes() + index_bytes();
  for (int64_t s = 0; s < n_streams_; ++s, to += all_heads * n_queries) {
    const char* from = queries_ + static_cast<size_t>(s) * stream_stride_;
    if (head_stride_ == head_bytes) {
      if (!stream->copy_to_host(to, from, query_stride_, all_heads, n_queries)) return false;
      continue;
    }
    for (size_t i = 0; i < n_queries; ++i) {
      if (!stream->copy_to_host(to + i * all_heads, from + i * query_stride_, head_stride_, head_bytes, static_cast<size_t>(n_heads_))) return false;
    }
  }
  return true;
}

bool KeyLearning::read_places(const PlanMemory& memory) {
  places_ = row_numbers(memory.staging.base() + staging_offset_ + rows_bytes(), new_rows_.cells_type, n_rows_);
  for (int64_t& place : places_) {
    place += new_rows_.cell_offset;
    if (place < 0 || place >= keys_->n_rows()) return false;
  }
  return true;
}

void KeyLearning::add_queries(const PlanMemory& memory) const {
  const auto* query = reinterpret_cast<const float*>(memory.staging.base() + staging_offset_ + rows_bytes() + index_bytes());
  const int64_t n_group = n_heads_ / keys_->n_heads();
  for (int64_t i = 0; i < n_queries_ * n_streams_; ++i) {
    for (int64_t h = 0; h < n_heads_; ++h, query += head_dim_) keys_->conditioner()->add_query(h / n_group, query);
  }
}

// A first batch that is enough, as most prompts are: its rows need not be kept.
bool KeyLearning::learn_from_batch(const PlanMemory& memory) {
  is_learnt_ = false;
  KeyConditioner* conditioner = keys_->conditioner();
  if (!conditioner->is_learning()) return true;
  if (!read_places(memory)) return false;
  add_queries(memory);
  if (conditioner->n_kept() > 0 || places_.size() < KeyConditioner::kEnoughRows) return true;
  conditioner->learn_from_rows(reinterpret_cast<const float*>(memory.staging.base() + staging_offset_), places_.size());
  int64_t last_run = -1;
  for (const int64_t place : places_) {
    const int64_t stream = place / keys_->n_cells(), cell = place % keys_->n_cells();
    const int64_t run = stream * keys_->n_cells() + cell / KeyMeans::kCells;
    for (int64_t head = 0; run != last_run && head < keys_->n_heads(); ++head) conditioner->means().settle(stream, head, cell);
    last_run = run;
  }
  is_learnt_ = true;
  return true;
}

bool KeyLearning::is_due() const {
  const KeyConditioner& conditioner = *keys_->conditioner();
  const size_t n = conditioner.n_kept(), n_learnt = conditioner.n_learnt();
  return n_learnt == 0 || n >= KeyConditioner::kEnoughRows || (n >= kFewestRows && n >= 4 * n_learnt);
}

bool KeyLearning::finish(GpuStream* stream, PlanMemory* memory, std::string* error) {
  KeyConditioner* conditioner = keys_->conditioner();
  const char* rows = memory->staging.base() + staging_offset_;
  if (is_learnt_) {
    is_learnt_ = false;
    keys_->device()->upload_conditioning(*keys_);
    return encode(stream, n_rows_, rows, rows + rows_bytes(), new_rows_.cells_type, new_rows_.cell_offset, error);
  }
  if (!conditioner->is_learning()) return true;
  for (size_t i = 0; i < places_.size(); ++i) {
    conditioner->keep_row(reinterpret_cast<const float*>(rows) + i * static_cast<size_t>(keys_->n_values()), places_[i]);
  }
  conditioner->set_stored();  // by the graph's own encode
  if (!is_due()) return true;
  keys_->device()->download_means(keys_);
  const size_t first = conditioner->learn();
  keys_->device()->upload_conditioning(*keys_);
  if (!store_kept(first, stream, memory, error)) return false;
  conditioner->finish_pass();
  return true;
}

bool KeyLearning::encode(GpuStream* stream, int64_t n_rows, const void* rows, const void* numbers, kvt_cuda_index_type type,
                         int64_t first_row, std::string* error) const {
  kvt_cuda_encode_args args = new_rows_;
  args.n_rows = static_cast<uint32_t>(n_rows);
  args.src = rows;
  args.src_row_stride = static_cast<size_t>(keys_->n_values()) * sizeof(float);
  args.cells = numbers;
  args.cells_type = type;
  args.cell_offset = first_row;
  const kvt_status status = kvt_cuda_encode(&args, stream->handle());
  if (status == KVT_OK) return true;
  *error = kvt_status_string(status);
  return false;
}

bool KeyLearning::store_kept(size_t first, GpuStream* stream, PlanMemory* memory, std::string* error) const {
  const KeyConditioner& conditioner = *keys_->conditioner();
  // A cell that was written twice is stored as it was last.
  std::map<int64_t, size_t> last_of;
  for (size_t i = first; i < conditioner.n_kept(); ++i) last_of[conditioner.kept_place(i)] = i;
  if (last_of.empty()) return true;
  const auto width = static_cast<size_t>(keys_->n_values());
  std::vector<float> rows(last_of.size() * width);
  std::vector<int64_t> places;
  for (const auto& [place, i] : last_of) {
    std::memcpy(rows.data() + places.size() * width, conditioner.kept_row(i), width * sizeof(float));
    places.push_back(place);
  }
  const size_t rows_end = rows.size() * sizeof(float);
  // The layer before may be reading it.
  if (!stream->synchronize()) {
    *error = stream->last_error();
    return false;
  }
  if (!memory->kept_rows.require(rows_end + places.size() * sizeof(int64_t))) {
    *error = "no GPU memory for keys that are encoded anew";
    return false;
  }
  memory->kept_rows.block()->write(0, rows_end, rows.data());
  memory->kept_rows.block()->write(rows_end, places.size() * sizeof(int64_t), places.data());
  const char* base = memory->kept_rows.base();
  return encode(stream, static_cast<int64_t>(places.size()), base, base + rows_end, KVT_CUDA_I64, 0, error);
}

}  // namespace kvt::plugin
