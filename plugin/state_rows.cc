#include "state_rows.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <set>

#include "api/engine_encode.h"
#include "cache_buffer.h"
#include "cache_image.h"
#include "cache_rows.h"
#include "codec_store.h"
#include "plugin_messages.h"

namespace kvt::plugin {
namespace {

// More keys than this do not wait: stock's rows name no conditioning, and what these teach is enough.
constexpr size_t kMostWaiting = 1024;

std::atomic<int> g_n_set{0};  // tensors in which rows were set since the last graph of their cache; those that are gone count on

int64_t stream_of(const CacheTensor& cache, int64_t row) { return row / cache.n_cells(); }
int64_t cell_of(const CacheTensor& cache, int64_t row) { return row % cache.n_cells(); }

bool is_zero(const ggml_fp16_t* values, int64_t n) {
  return std::all_of(values, values + n, [](ggml_fp16_t h) { return (h & 0x7fff) == 0; });
}

StateRowShape shape_of(const CacheTensor& cache) {
  return StateRowShape(make_side_layout(cache.codec_id(), cache.side(), static_cast<unsigned>(cache.head_dim())),
                       static_cast<unsigned>(cache.n_heads()));
}

// ---- out

StateRow read_codes(CacheTensor* cache, const StateRowShape& shape, int64_t row) {
  StateRow found;
  found.codes.resize(shape.n_values());
  found.norms.resize(shape.n_norms());
  found.piece_bytes.resize(shape.piece_bytes());
  for (unsigned head = 0; head < shape.n_heads; ++head) {
    kvt_internal::read_cell(cache->codec(), cache->side(), cache->head_pages(stream_of(*cache, row), head), cache->page_stride(),
                            cell_of(*cache, row), found.codes.data() + size_t{head} * shape.head_dim,
                            found.norms.data() + size_t{head} * shape.norms_per_head);
  }
  return found;
}

bool is_empty(const StateRow& row) {
  return std::all_of(row.norms.begin(), row.norms.end(), [](uint16_t norm) { return norm == 0; }) &&
         std::all_of(row.codes.begin(), row.codes.end(), [](uint8_t code) { return code == 0; });
}

// The newest kept key of a place, while conditioning is learnt; nullptr if there is none.
const float* kept_key(const KeyConditioner& conditioner, int64_t row) {
  for (size_t i = conditioner.n_kept(); i-- > 0;) {
    if (conditioner.kept_place(i) == row) return conditioner.kept_row(i);
  }
  return nullptr;
}

// ---- in

void write_codes(CacheTensor* cache, const StateRowShape& shape, int64_t row, const StateRow& codes) {
  const int64_t stream = stream_of(*cache, row), cell = cell_of(*cache, row);
  if (cache->recent() != nullptr) cache->recent()->forget(static_cast<size_t>(stream), static_cast<int32_t>(cell), static_cast<int32_t>(cell) + 1);
  for (unsigned head = 0; head < shape.n_heads; ++head) {
    kvt_internal::write_cell(cache->codec(), cache->side(), cache->head_pages(stream, head), cache->page_stride(), cell,
                             codes.codes.data() + size_t{head} * shape.head_dim,
                             codes.norms.data() + size_t{head} * shape.norms_per_head);
    if (cell >= cache->n_exact()) continue;
    if (is_empty(codes)) {
      std::fill_n(cache->exact_row(stream, head, cell), shape.head_dim, ggml_fp16_t{0});
    } else {  // attention reads this row instead
      float values[KVT_MAX_HEAD_DIM];
      kvt_decode(cache->codec(), cache->side(), cache->head_pages(stream, head), cache->page_stride(), static_cast<size_t>(cell), 1, values,
                 shape.head_dim);
      if (cache->conditioner() != nullptr) cache->conditioner()->undo(stream, head, cell, values);
      host().ggml_fp32_to_fp16_row(values, cache->exact_row(stream, head, cell), shape.head_dim);
    }
  }
}

// A digest of a conditioning as bytes; 0 if it is none: means 0 and scale 1.
uint32_t digest_of(const StateRowShape& shape, const std::vector<uint8_t>& bytes) {
  bool is_none = true;
  const size_t begin_scale = shape.n_values() + 4 * size_t{shape.n_heads};
  for (size_t i = 0; i < shape.n_values(); ++i) {
    is_none = is_none && bytes[i] == 0 && (bytes[begin_scale + 2 * i] | bytes[begin_scale + 2 * i + 1] << 8) == 0x3c00;
  }
  return is_none ? 0 : conditioning_digest(bytes.data(), bytes.size());
}

// The conditioning of the run of cells that was asked for last: rows come in their order.
class RunConditioning {
 public:
  RunConditioning(const CacheTensor& cache, const StateRowShape& shape) : cache_(cache), shape_(shape) {}
  const std::vector<uint8_t>& bytes(int64_t row) { return get(row), bytes_; }
  uint32_t digest(int64_t row) { return get(row), digest_; }

 private:
  void get(int64_t row) {
    const int64_t stream = stream_of(cache_, row), cell = cell_of(cache_, row), run = cell / KeyMeans::kCells;
    if (stream == stream_ && run == run_) return;
    stream_ = stream;
    run_ = run;
    bytes_ = cache_.conditioner()->bytes_of(stream, cell);
    digest_ = digest_of(shape_, bytes_);
  }
  const CacheTensor& cache_;
  const StateRowShape& shape_;
  int64_t stream_ = -1, run_ = -1;
  std::vector<uint8_t> bytes_;
  uint32_t digest_ = 0;
};

// Codes of a conditioning that is not that of its cells -> values [n_values].
void decode_other(const CacheTensor& cache, const StateRowShape& shape, const StateRow& codes, const std::vector<uint8_t>& conditioning,
                  ggml_fp16_t* values) {
  const size_t page_bytes = kvt_page_bytes(cache.codec(), cache.side());
  std::vector<uint8_t> page(page_bytes);
  KeyConditioner other(1, cache.n_heads(), cache.head_dim(), 1);
  other.adopt_scale(conditioning);
  if (!conditioning.empty()) other.adopt_mean(0, 0, conditioning);
  for (unsigned head = 0; head < shape.n_heads; ++head) {
    float decoded[KVT_MAX_HEAD_DIM];
    kvt_internal::write_cell(cache.codec(), cache.side(), page.data(), page_bytes, 0, codes.codes.data() + size_t{head} * shape.head_dim,
                             codes.norms.data() + size_t{head} * shape.norms_per_head);
    kvt_decode(cache.codec(), cache.side(), page.data(), page_bytes, 0, 1, decoded, shape.head_dim);
    other.undo(0, head, 0, decoded);
    host().ggml_fp32_to_fp16_row(decoded, values + size_t{head} * shape.head_dim, shape.head_dim);
  }
}

// Whether codes of that conditioning can go into the row's cell.
bool matches(const CacheTensor& cache, int64_t row, uint32_t digest, RunConditioning* conditioning) {
  const KeyConditioner* conditioner = cache.conditioner();
  if (conditioner == nullptr) return digest == 0;
  return !conditioner->is_learning() && !conditioner->means().is_new(stream_of(cache, row), cell_of(cache, row)) &&
         conditioning->digest(row) == digest;
}

bool has_waiting(CacheTensor* cache) { return cache->waiting_keys() != nullptr && !cache->waiting_keys()->rows.empty(); }

WaitingKeys* waiting_of(CacheTensor* cache) {
  std::unique_ptr<WaitingKeys>& waiting = cache->waiting_keys();
  if (waiting == nullptr) waiting = std::make_unique<WaitingKeys>();
  return waiting.get();
}

// The conditioning with a digest, if its pieces are together; empty for none.
bool find_conditioning(const WaitingKeys& waiting, uint32_t digest, std::vector<uint8_t>* bytes) {
  bytes->clear();
  if (digest == 0) return true;
  const auto it = waiting.pieces.find(digest);
  if (it == waiting.pieces.end() || !it->second.is_complete(digest)) return false;
  *bytes = it->second.bytes();
  return true;
}

// An empty cache takes over the scales that come with the first keys, and cells without a mean theirs.
void adopt_conditioning(CacheTensor* cache, const WaitingKeys& waiting) {
  KeyConditioner* conditioner = cache->conditioner();
  if (conditioner == nullptr || (conditioner->is_learning() && conditioner->n_kept() > 0)) return;
  const bool was_learning = conditioner->is_learning();
  std::vector<uint8_t> bytes, first;
  for (const WaitingKeys::Row& row : waiting.rows) {
    if (row.codes == nullptr || !find_conditioning(waiting, row.codes->conditioning, &bytes)) continue;
    if (conditioner->is_learning()) conditioner->adopt_scale(bytes);
    const int64_t stream = stream_of(*cache, row.row), cell = cell_of(*cache, row.row);
    if (!bytes.empty() && conditioner->means().is_new(stream, cell)) conditioner->adopt_mean(stream, cell, bytes);
    if (first.empty()) first = bytes;
  }
  // The other streams begin with the first mean, as they do when it is learnt.
  for (int64_t stream = 0; was_learning && !first.empty() && stream < cache->n_rows() / cache->n_cells(); ++stream) {
    if (conditioner->means().is_new(stream, 0)) conditioner->adopt_mean(stream, 0, first);
  }
}

void store_waiting(CacheTensor* cache, WaitingKeys* waiting) {
  adopt_conditioning(cache, *waiting);
  KeyConditioner* conditioner = cache->conditioner();
  const StateRowShape shape = shape_of(*cache);
  RunConditioning conditioning(*cache, shape);
  const auto n = static_cast<size_t>(cache->n_values());
  size_t n_rounded = 0;
  std::vector<float> values(n);
  std::vector<uint8_t> bytes;
  if (conditioner != nullptr && conditioner->is_learning() && conditioner->n_kept() == 0) {
    std::vector<float> taught;
    for (const WaitingKeys::Row& row : waiting->rows) {
      host().ggml_fp16_to_fp32_row(row.values.data(), values.data(), cache->n_values());
      taught.insert(taught.end(), values.begin(), values.end());
    }
    if (taught.size() / n >= KeyConditioner::kEnoughRows) conditioner->learn_from_rows(taught.data(), taught.size() / n);
  }
  // Rows of another sequence, with unusual first ones among them, are nothing to go on learning from.
  const bool was_empty = conditioner != nullptr && conditioner->n_kept() == 0;
  for (WaitingKeys::Row& row : waiting->rows) {
    if (row.codes != nullptr) {
      const int64_t stream = stream_of(*cache, row.row), cell = cell_of(*cache, row.row);
      const bool has_means = conditioner != nullptr && !conditioner->is_learning();
      for (int64_t head = 0; has_means && head < cache->n_heads(); ++head) begin_mean(cache, stream, head, cell);
      if (matches(*cache, row.row, row.codes->conditioning, &conditioning)) {
        write_codes(cache, shape, row.row, *row.codes);
        continue;
      }
      ++n_rounded;
      // If the conditioning is not known, the values tell nearly what the key was.
      if (find_conditioning(*waiting, row.codes->conditioning, &bytes)) decode_other(*cache, shape, *row.codes, bytes, row.values.data());
    }
    image_write(cache, row.row, row.values.data(), row.is_first);
    if (row.codes != nullptr && cache->recent() != nullptr) {
      const auto cell = static_cast<int32_t>(cell_of(*cache, row.row));
      cache->recent()->forget(static_cast<size_t>(stream_of(*cache, row.row)), cell, cell + 1);
    }
    if (conditioner != nullptr && conditioner->is_learning()) {
      host().ggml_fp16_to_fp32_row(row.values.data(), values.data(), cache->n_values());
      if (was_empty) {
        conditioner->keep_row(values.data(), row.row);
      } else if (!conditioner->replace_row(values.data(), row.row)) {
        conditioner->freeze();
      }
    }
  }
  if (conditioner != nullptr && conditioner->is_learning()) conditioner->set_stored();
  if (n_rounded > 0) {
    say_once("a restored state has keys of another conditioning than the cells that they came into: they are rounded once more; restore it "
             "before other requests to avoid that");
  }
}

void wait_for_conditioning(CacheTensor* cache, int64_t row, const ggml_fp16_t* values, std::unique_ptr<StateRow> codes, bool is_first) {
  WaitingKeys* waiting = waiting_of(cache);
  const uint32_t digest = codes != nullptr ? codes->conditioning : 0;
  bool is_complete = codes != nullptr && digest == 0;
  if (digest != 0) {
    auto [it, is_new] = waiting->pieces.try_emplace(digest, shape_of(*cache));
    it->second.add(*codes);
    is_complete = it->second.is_complete(digest);
  }
  waiting->rows.push_back({row, std::vector<ggml_fp16_t>(values, values + cache->n_values()), std::move(codes), is_first});
  if (is_complete || waiting->rows.size() >= kMostWaiting) state_settle(cache);
}

}  // namespace

void state_get_rows(CacheTensor* cache, int64_t first_row, int64_t n_rows, ggml_fp16_t* dst) {
  image_decode(cache, first_row, n_rows, dst, 0, 1);
  if (cache->codec_id() == KVT_CODEC_F16 || !cache_options().has_codes_in_states) return;
  const StateRowShape shape = shape_of(*cache);
  RunConditioning conditioning(*cache, shape);
  const KeyConditioner* conditioner = cache->conditioner();
  const bool is_learning = conditioner != nullptr && conditioner->is_learning();
  for (int64_t row = first_row; row < first_row + n_rows; ++row, dst += cache->n_values()) {
    const int64_t stream = stream_of(*cache, row), cell = cell_of(*cache, row);
    if (cell < cache->n_exact() || is_zero(dst, cache->n_values())) continue;
    RecentRows* recent = cache->recent();
    if (recent != nullptr && recent->row(static_cast<size_t>(stream), 0, static_cast<int32_t>(cell)) != nullptr) continue;
    StateRow codes = read_codes(cache, shape, row);
    if (is_empty(codes)) {
      std::fill_n(dst, cache->n_values(), ggml_fp16_t{0});  // not the keys' mean, which an empty cell decodes to
      continue;
    }
    if (is_learning) {
      const float* key = kept_key(*conditioner, row);
      if (key != nullptr) host().ggml_fp32_to_fp16_row(key, dst, cache->n_values());
      continue;
    }
    if (conditioner != nullptr) {
      codes.conditioning = conditioning.digest(row);
      codes.piece = static_cast<uint8_t>(cell % shape.n_pieces());
      cut_piece(shape, conditioning.bytes(row).data(), codes.piece, codes.piece_bytes.data());
    }
    hide_state_row(shape, codes, dst);
  }
}

void state_set_rows(CacheTensor* cache, int64_t first_row, int64_t n_rows, const ggml_fp16_t* src) {
  if (cache->codec_id() == KVT_CODEC_F16) return image_encode(cache, first_row, n_rows, src, 0, 1);
  if (!cache->was_set()) ++g_n_set;
  cache->was_set() = true;
  const StateRowShape shape = shape_of(*cache);
  RunConditioning conditioning(*cache, shape);
  for (int64_t row = first_row; row < first_row + n_rows; ++row, src += cache->n_values()) {
    if (is_zero(src, cache->n_values())) {
      if (is_empty(read_codes(cache, shape, row)) && cell_of(*cache, row) >= cache->n_exact()) continue;  // leaves its page uncommitted
      write_codes(cache, shape, row, {0, 0, std::vector<uint8_t>(shape.n_values()), std::vector<uint16_t>(shape.n_norms()), {}});
      continue;
    }
    auto codes = std::make_unique<StateRow>();
    if (!find_state_row(shape, src, codes.get())) codes.reset();
    // What comes between two graphs is one sequence from its first token on, unless that is not exact.
    const bool is_first = cache->n_restored()++ < cache->n_exact() && codes == nullptr && cache->n_rows() == cache->n_cells();
    const bool is_learning = cache->conditioner() != nullptr && cache->conditioner()->is_learning();
    if (codes != nullptr && !has_waiting(cache) && matches(*cache, row, codes->conditioning, &conditioning)) {
      write_codes(cache, shape, row, *codes);
    } else if (codes != nullptr || is_learning || has_waiting(cache)) {
      wait_for_conditioning(cache, row, src, std::move(codes), is_first);
    } else {
      image_write(cache, row, src, is_first);
    }
  }
}

void state_settle(CacheTensor* cache) {
  if (!has_waiting(cache)) return;
  int64_t first = cache->n_rows(), last = 0;
  for (const WaitingKeys::Row& row : cache->waiting_keys()->rows) {
    first = std::min(first, row.row);
    last = std::max(last, row.row);
  }
  const HostSide host_side(cache, first, last + 1 - first, HostSide::For::kWriting);
  store_waiting(cache, cache->waiting_keys().get());
  cache->waiting_keys()->rows.clear();  // the pieces may serve the rows that follow
}

void state_drop(CacheTensor* cache) { cache->waiting_keys().reset(); }

namespace {

void settle_buffer(const CacheBuffer& buffer) {
  bool was_set = false;
  for (const auto& tensor : buffer.tensors()) {
    if (!tensor->was_set()) continue;
    was_set = true;
    tensor->was_set() = false;
    --g_n_set;
    state_settle(tensor.get());
    state_drop(tensor.get());
    tensor->n_restored() = 0;
  }
  if (!was_set) return;
  for (const auto& keys : buffer.tensors()) {
    for (const auto& values : buffer.tensors()) {
      if (keys->side() != KVT_KEY || values->side() != KVT_VALUE || keys->layer() != values->layer()) continue;
      if (keys->recent() == nullptr || values->recent() == nullptr) continue;
      const HostSide keys_side(keys.get(), 0, 0, HostSide::For::kWriting), values_side(values.get(), 0, 0, HostSide::For::kWriting);
      keys->recent()->align_with(*values->recent());
      values->recent()->align_with(*keys->recent());  // of one length
    }
  }
}

}  // namespace

void state_settle_caches_of(const ggml_cgraph* graph) {
  if (g_n_set == 0) return;
  std::set<const CacheBuffer*> buffers;
  const auto find = [&](const ggml_tensor* t) {
    if (t != nullptr && cache_tensor_of(t) != nullptr) buffers.insert(cache_buffer_of(owner_of(t)->buffer));
  };
  for (int i = 0; i < graph->n_nodes; ++i) {
    find(graph->nodes[i]);
    for (const ggml_tensor* src : graph->nodes[i]->src) find(src);
  }
  for (const CacheBuffer* buffer : buffers) settle_buffer(*buffer);
}

}  // namespace kvt::plugin
