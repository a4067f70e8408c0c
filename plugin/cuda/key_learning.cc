#include "key_learning.h"

#include <algorithm>
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
constexpr size_t kMostSlots = 32;
constexpr size_t kMostSlotBytes = size_t{1} << 20;  // of a layer
constexpr size_t kKeptBytes = size_t{4} << 20;      // pinned memory for keys that are encoded anew

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

size_t KeyLearning::slot_bytes() const {
  const size_t query_bytes = static_cast<size_t>(head_dim_ * n_heads_ * n_queries_ * n_streams_) * sizeof(float);
  return round_up(rows_bytes() + index_bytes() + query_bytes, kDeviceAlignment);
}

size_t KeyLearning::n_slots() const { return std::clamp<size_t>(kMostSlotBytes / slot_bytes(), 1, kMostSlots); }

// Keys and their numbers to slot 0. Pieces for the other slots are the plan's matter.
bool KeyLearning::copy_rows(GpuStream* stream, const PlanMemory& memory) const {
  char* to = slot(memory, 0);
  const size_t number_bytes = new_rows_.cells_type == KVT_CUDA_I64 ? sizeof(int64_t) : sizeof(int32_t);
  return stream->copy_to_host(to, new_rows_.src, new_rows_.src_row_stride, static_cast<size_t>(keys_->n_values()) * sizeof(float),
                              static_cast<size_t>(n_rows_)) &&
         stream->copy_to_host(to + rows_bytes(), new_rows_.cells, 0, static_cast<size_t>(n_rows_) * number_bytes, 1);
}

bool KeyLearning::copy_queries(GpuStream* stream, const PlanMemory& memory) const {
  const size_t head_bytes = static_cast<size_t>(head_dim_) * sizeof(float), all_heads = head_bytes * static_cast<size_t>(n_heads_);
  const auto n_queries = static_cast<size_t>(n_queries_);
  char* to = slot(memory, 0) + rows_bytes() + index_bytes();
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

StagedPieces KeyLearning::pieces(const PlanMemory& memory, bool with_rows, bool with_queries) const {
  const auto words = [](int64_t n_bytes) { return static_cast<uint32_t>(n_bytes / static_cast<int64_t>(sizeof(uint32_t))); };
  const auto count = [](int64_t n) { return static_cast<uint32_t>(n); };
  StagedPieces all;
  all.slots = slot(memory, 0);
  all.slot_bytes = slot_bytes();
  all.number = reinterpret_cast<const uint32_t*>(memory.slot_number.base());
  StagedPiece* next = all.piece;
  if (with_rows) {
    const int64_t number_bytes = new_rows_.cells_type == KVT_CUDA_I64 ? sizeof(int64_t) : sizeof(int32_t);
    *next++ = {new_rows_.src, {count(keys_->n_values()), count(n_rows_), 1, 1}, {new_rows_.src_row_stride, 0, 0}, 0};
    *next++ = {new_rows_.cells, {words(number_bytes * n_rows_), 1, 1, 1}, {0, 0, 0}, rows_bytes()};
  }
  if (with_queries && n_streams_ > 0) {
    *next++ = {queries_,
               {count(head_dim_), count(n_heads_), count(n_queries_), count(n_streams_)},
               {head_stride_, query_stride_, stream_stride_},
               rows_bytes() + index_bytes()};
  }
  return all;
}

// Empty if one is outside of the cache.
std::vector<int64_t> KeyLearning::places_in(const char* slot) const {
  std::vector<int64_t> places = row_numbers(slot + rows_bytes(), new_rows_.cells_type, n_rows_);
  for (int64_t& place : places) {
    place += new_rows_.cell_offset;
    if (place < 0 || place >= keys_->n_rows()) return {};
  }
  return places;
}

void KeyLearning::add_queries(const char* slot) const {
  const auto* query = reinterpret_cast<const float*>(slot + rows_bytes() + index_bytes());
  const int64_t n_group = n_heads_ / keys_->n_heads();
  for (int64_t i = 0; i < n_queries_ * n_streams_; ++i) {
    for (int64_t h = 0; h < n_heads_; ++h, query += head_dim_) keys_->conditioner()->add_query(h / n_group, query);
  }
}

bool KeyLearning::is_due(size_t n_kept) const {
  const size_t n_learnt = keys_->conditioner()->n_learnt();
  return n_kept >= KeyConditioner::kEnoughRows || (n_kept >= kFewestRows && n_kept >= 4 * n_learnt);
}

bool KeyLearning::is_due_after(size_t n_slots_used) const {
  return n_slots_used >= n_slots() || is_due(keys_->conditioner()->n_kept() + n_slots_used * static_cast<size_t>(n_rows_));
}

bool KeyLearning::learn(const PlanMemory& memory, size_t n_slots_used) {
  learnt_ = Learnt::kNothing;
  KeyConditioner* conditioner = keys_->conditioner();
  for (size_t number = 0; number < n_slots_used && conditioner->is_learning(); ++number) {
    const char* at = slot(memory, number);
    const std::vector<int64_t> places = places_in(at);
    if (places.empty()) return false;
    add_queries(at);
    const auto* rows = reinterpret_cast<const float*>(at);
    if (conditioner->n_kept() == 0 && places.size() >= KeyConditioner::kEnoughRows) {
      // A first batch that is enough, as most prompts are: its rows need not be kept.
      conditioner->learn_from_rows(rows, places.size());
      int64_t last_run = -1;
      for (const int64_t place : places) {
        const int64_t stream = place / keys_->n_cells(), cell = place % keys_->n_cells();
        const int64_t run = stream * keys_->n_cells() + cell / KeyMeans::kCells;
        for (int64_t head = 0; run != last_run && head < keys_->n_heads(); ++head) conditioner->means().settle(stream, head, cell);
        last_run = run;
      }
      keys_->device()->upload_conditioning(*keys_);
      learnt_ = Learnt::kFromBatch;
      return true;
    }
    for (size_t i = 0; i < places.size(); ++i) {
      conditioner->keep_row(rows + i * static_cast<size_t>(keys_->n_values()), places[i]);
    }
    conditioner->set_stored();  // by the graph's own encode
  }
  if (!conditioner->is_learning() || conditioner->n_kept() == 0) return true;
  if (conditioner->n_learnt() > 0 && !is_due(conditioner->n_kept())) return true;
  keys_->device()->download_means(keys_);
  first_to_store_ = conditioner->learn();
  keys_->device()->upload_conditioning(*keys_);
  learnt_ = Learnt::kFromKept;
  return true;
}

bool KeyLearning::finish(GpuStream* stream, PlanMemory* memory, std::string* error) {
  const Learnt learnt = learnt_;
  learnt_ = Learnt::kNothing;
  if (learnt == Learnt::kNothing) return true;
  if (learnt == Learnt::kFromBatch) {
    const char* rows = slot(*memory, 0);
    return encode(stream, n_rows_, rows, rows + rows_bytes(), new_rows_.cells_type, new_rows_.cell_offset, error);
  }
  if (!store_kept(stream, memory, error)) return false;
  keys_->conditioner()->finish_pass();
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

bool KeyLearning::store_kept(GpuStream* stream, PlanMemory* memory, std::string* error) const {
  const KeyConditioner& conditioner = *keys_->conditioner();
  // A cell that was written twice is stored as it was last.
  std::map<int64_t, size_t> last_of;
  for (size_t i = first_to_store_; i < conditioner.n_kept(); ++i) last_of[conditioner.kept_place(i)] = i;
  if (last_of.empty()) return true;
  const size_t row_bytes = static_cast<size_t>(keys_->n_values()) * sizeof(float), numbers_at = last_of.size() * row_bytes;
  const size_t bytes = round_up(numbers_at + last_of.size() * sizeof(int64_t), kDeviceAlignment);
  PinnedArena& arena = memory->kept_rows;
  if (!arena.has(memory->kept_bytes_used + bytes)) {  // those of layers before have to be stored first
    if (!stream->synchronize()) {
      *error = stream->last_error();
      return false;
    }
    memory->kept_bytes_used = 0;
    if (!arena.require(std::max(bytes, kKeptBytes))) {
      *error = "no memory for keys that are encoded anew";
      return false;
    }
  }
  char* base = arena.base() + memory->kept_bytes_used;
  memory->kept_bytes_used += bytes;
  size_t n = 0;
  for (const auto& [place, i] : last_of) {
    std::memcpy(base + n * row_bytes, conditioner.kept_row(i), row_bytes);
    std::memcpy(base + numbers_at + n * sizeof(place), &place, sizeof(place));
    ++n;
  }
  return encode(stream, static_cast<int64_t>(n), base, base + numbers_at, KVT_CUDA_I64, 0, error);
}

}  // namespace kvt::plugin
