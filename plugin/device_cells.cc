#include "device_cells.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cache_tensor.h"
#include "graph_runner.h"

namespace kvt::plugin {
namespace {

constexpr size_t kAlignment = 256;

// Bytes offset .. offset + bytes - 1 of a buffer as a tensor, for ggml's copies.
ggml_tensor as_tensor(ggml_backend_buffer_t buffer, char* data, size_t bytes) {
  ggml_tensor t{};
  t.type = GGML_TYPE_I8;
  t.ne[0] = static_cast<int64_t>(bytes);
  t.ne[1] = t.ne[2] = t.ne[3] = 1;
  t.nb[0] = 1;
  t.nb[1] = t.nb[2] = t.nb[3] = bytes;
  t.buffer = buffer;
  t.data = data;
  return t;
}

uint64_t mix(uint64_t state, uint64_t value) {
  state = (state ^ value) * 0x9e3779b97f4a7c15u;
  return state ^ state >> 29;
}

}  // namespace

// ---- DeviceBlock

std::unique_ptr<DeviceBlock> DeviceBlock::create(ggml_backend_buffer_type_t inner_type, size_t bytes) {
  ggml_backend_buffer_t buffer = host().ggml_backend_buft_alloc_buffer(inner_type, std::max(bytes, kAlignment));
  if (buffer == nullptr) return nullptr;
  std::unique_ptr<DeviceBlock> block(new DeviceBlock(buffer, bytes));
  block->clear();
  return block;
}

DeviceBlock::DeviceBlock(ggml_backend_buffer_t buffer, size_t bytes)
    : buffer_(buffer), base_(static_cast<char*>(host().ggml_backend_buffer_get_base(buffer))), bytes_(bytes) {}

DeviceBlock::~DeviceBlock() { host().ggml_backend_buffer_free(buffer_); }

void DeviceBlock::read(size_t offset, size_t bytes, void* dst) const {
  if (bytes == 0) return;
  const ggml_tensor t = as_tensor(buffer_, base_ + offset, bytes);
  host().ggml_backend_tensor_get(&t, dst, 0, bytes);
}

void DeviceBlock::write(size_t offset, size_t bytes, const void* src) {
  if (bytes == 0) return;
  ggml_tensor t = as_tensor(buffer_, base_ + offset, bytes);
  host().ggml_backend_tensor_set(&t, src, 0, bytes);
}

void DeviceBlock::clear() { host().ggml_backend_buffer_clear(buffer_, 0); }

// ---- DeviceCells

std::unique_ptr<DeviceCells> DeviceCells::create(const CacheTensor& cache, ggml_backend_buffer_type_t inner_type) {
  auto cells = std::make_unique<DeviceCells>();
  cells->n_streams_ = static_cast<size_t>(cache.n_streams());
  cells->n_heads_ = static_cast<size_t>(cache.n_heads());
  cells->head_dim_ = static_cast<size_t>(cache.head_dim());
  cells->capacity_ = cache.recent() != nullptr ? cache.recent()->capacity() : 0;
  if (cache.conditioner() != nullptr) {
    cells->n_scales_ = cells->n_heads_ * cells->head_dim_;
    cells->n_units_ = cells->n_streams_ * cells->n_heads_ * static_cast<size_t>(cache.conditioner()->means().n_means());
  }
  const size_t row_bytes = cells->head_dim_ * sizeof(uint16_t), n_heads = cells->n_streams_ * cells->n_heads_;
  size_t end = cache.stream_stride() * cells->n_streams_;
  const auto place = [&](size_t bytes) {
    const size_t at = round_up(end, kAlignment);
    end = at + bytes;
    return at;
  };
  cells->first_ = place(n_heads * static_cast<size_t>(cache.n_exact()) * row_bytes);
  cells->ring_ = place(n_heads * cells->capacity_ * row_bytes);
  cells->ring_cells_ = place(cells->n_streams_ * cells->capacity_ * sizeof(int32_t));
  cells->ring_next_ = place(cells->n_streams_ * sizeof(uint32_t));
  cells->conditioning_ = place((2 * cells->n_scales_ + cells->n_units_) * sizeof(float));
  cells->means_ = place(cells->n_units_ * cells->head_dim_);
  cells->block_ = DeviceBlock::create(inner_type, round_up(end, kAlignment));
  if (cells->block_ == nullptr) return nullptr;
  cells->zero(cache);
  return cells;
}

void DeviceCells::zero(const CacheTensor& cache) {
  block_->clear();
  const std::vector<int32_t> none(n_streams_ * capacity_, -1);
  block_->write(ring_cells_, none.size() * sizeof(int32_t), none.data());
  upload_conditioning(cache);
  ring_history_ = 0;
}

void DeviceCells::upload_conditioning(const CacheTensor& cache) {
  if (n_scales_ == 0) return;
  const KeyConditioner& conditioner = *cache.conditioner();
  std::vector<float> values(conditioner.scale(), conditioner.scale() + n_scales_);
  for (size_t i = 0; i < n_scales_; ++i) values.push_back(1 / values[i]);
  values.insert(values.end(), conditioner.means().all_units(), conditioner.means().all_units() + n_units_);
  block_->write(conditioning_, values.size() * sizeof(float), values.data());
  block_->write(means_, n_units_ * head_dim_, conditioner.means().all_codes());
}

void DeviceCells::download_means(CacheTensor* cache) const {
  if (n_units_ == 0) return;
  std::vector<float> units(n_units_);
  std::vector<int8_t> codes(n_units_ * head_dim_);
  block_->read(conditioning_ + 2 * n_scales_ * sizeof(float), n_units_ * sizeof(float), units.data());
  block_->read(means_, codes.size(), codes.data());
  cache->conditioner()->means().load(codes.data(), units.data());
}

void DeviceCells::note_rows(const void* index, uint64_t step) {
  ring_history_ = mix(mix(ring_history_, reinterpret_cast<uintptr_t>(index)), step);
}

// copy(offset on the device, place on the host's side, bytes) for the pages of each stream and head that hold the rows.
template <typename Copy>
void DeviceCells::for_page_ranges(const CacheTensor& cache, int64_t first_row, int64_t n_rows, Copy copy) const {
  for (int64_t row = first_row; row < first_row + n_rows;) {
    const int64_t stream = row / cache.n_cells(), cell = row % cache.n_cells();
    const int64_t n = std::min(first_row + n_rows - row, cache.n_cells() - cell);
    const int64_t first_page = cell / KVT_PAGE_TOKENS, n_pages = (cell + n - 1) / KVT_PAGE_TOKENS + 1 - first_page;
    for (int64_t head = 0; head < cache.n_heads(); ++head) {
      const size_t offset = static_cast<size_t>(stream) * cache.stream_stride() + static_cast<size_t>(head) * cache.head_stride() +
                            static_cast<size_t>(first_page) * cache.page_stride();
      copy(offset, cache.host_pages() + offset, static_cast<size_t>(n_pages) * cache.page_stride());
    }
    row += n;
  }
}

std::vector<int32_t> DeviceCells::read_ring_cells() const {
  std::vector<int32_t> cells(n_streams_ * capacity_);
  block_->read(ring_cells_, cells.size() * sizeof(int32_t), cells.data());
  return cells;
}

void DeviceCells::download(CacheTensor* cache, int64_t first_row, int64_t n_rows) const {
  for_page_ranges(*cache, first_row, n_rows,
                  [&](size_t offset, char* place, size_t bytes) { block_->read(offset, bytes, place); });
  if (cache->n_exact() > 0) {
    block_->read(first_, cache->exact_stream_stride() * n_streams_, cache->exact_row(0, 0, 0));
  }
  download_means(cache);
  if (capacity_ == 0) return;
  const std::vector<int32_t> cells = read_ring_cells();
  std::vector<uint32_t> next(n_streams_);
  std::vector<ggml_fp16_t> rows(n_streams_ * n_heads_ * capacity_ * head_dim_);
  block_->read(ring_next_, next.size() * sizeof(uint32_t), next.data());
  block_->read(ring_, rows.size() * sizeof(ggml_fp16_t), rows.data());
  RecentRows* recent = cache->recent();
  recent->clear();
  for (size_t s = 0; s < n_streams_; ++s) {
    for (size_t i = 0; i < capacity_; ++i) {  // oldest first
      const size_t slot = (next[s] + i) % capacity_;
      const int32_t cell = cells[s * capacity_ + slot];
      if (cell < 0) continue;
      recent->append(s, cell);
      for (size_t head = 0; head < n_heads_; ++head) {
        std::copy_n(rows.data() + ((s * n_heads_ + head) * capacity_ + slot) * head_dim_, head_dim_, recent->row(s, head, cell));
      }
    }
  }
}

void DeviceCells::upload(CacheTensor* cache, int64_t first_row, int64_t n_rows) {
  for_page_ranges(*cache, first_row, n_rows,
                  [&](size_t offset, const char* place, size_t bytes) { block_->write(offset, bytes, place); });
  if (cache->n_exact() > 0) {
    block_->write(first_, cache->exact_stream_stride() * n_streams_, cache->exact_row(0, 0, 0));
  }
  upload_conditioning(*cache);
  if (capacity_ == 0) return;
  // The newest entries; a list on the host may be longer than the ring, and have gaps.
  const RecentList list = cache->recent()->list_of(nullptr);
  std::vector<uint32_t> next(n_streams_, 0);
  std::vector<int32_t> cells(n_streams_ * capacity_, -1);
  std::vector<uint16_t> rows(n_streams_ * n_heads_ * capacity_ * head_dim_, 0);
  ring_history_ = 0;
  for (size_t s = 0; s < n_streams_; ++s) {
    std::vector<size_t> entries;
    for (size_t e = 0; e < list.n_entries; ++e) {
      if (list.cells[s * list.n_entries + e] >= 0) entries.push_back(e);
    }
    if (entries.size() > capacity_) entries.erase(entries.begin(), entries.end() - static_cast<ptrdiff_t>(capacity_));
    next[s] = static_cast<uint32_t>(entries.size() % capacity_);
    for (size_t slot = 0; slot < entries.size(); ++slot) {
      const int32_t cell = cells[s * capacity_ + slot] = list.cells[s * list.n_entries + entries[slot]];
      ring_history_ = mix(ring_history_, (uint64_t{s} << 32 | slot) ^ mix(0, static_cast<uint64_t>(cell)));
      for (size_t head = 0; head < n_heads_; ++head) {
        std::copy_n(list.rows + ((s * n_heads_ + head) * list.n_entries + entries[slot]) * head_dim_, head_dim_,
                    rows.data() + ((s * n_heads_ + head) * capacity_ + slot) * head_dim_);
      }
    }
  }
  block_->write(ring_cells_, cells.size() * sizeof(int32_t), cells.data());
  block_->write(ring_next_, next.size() * sizeof(uint32_t), next.data());
  block_->write(ring_, rows.size() * sizeof(uint16_t), rows.data());
}

// ---- HostSide

HostSide::HostSide(CacheTensor* cache, int64_t first_row, int64_t n_rows, For purpose)
    : cache_(cache), first_row_(first_row), n_rows_(n_rows), purpose_(purpose), outer_(cache->host_side()) {
  if (cache_->device() == nullptr) return;
  finish_all_graphs();
  for (const HostSide* outer = outer_; outer != nullptr; outer = outer->outer_) {
    if (outer->purpose_ == For::kWriting) cache_->device()->upload(cache_, outer->first_row_, outer->n_rows_);
  }
  cache_->host_side() = this;
  int64_t first = first_row_;
  if (purpose == For::kWriting && cache->conditioner() != nullptr && n_rows > 0) {
    // A mean that is begun is predicted from the run of cells before.
    const int64_t cell = first % cache->n_cells(), run = cell / KeyMeans::kCells * KeyMeans::kCells;
    first -= cell - std::max<int64_t>(0, run - KeyMeans::kCells);
  }
  cache_->device()->download(cache_, first, first_row_ + n_rows_ - first);
}

HostSide::~HostSide() {
  if (cache_->device() == nullptr) return;
  if (purpose_ == For::kWriting) cache_->device()->upload(cache_, first_row_, n_rows_);
  cache_->host_side() = outer_;
  if (outer_ == nullptr) cache_->drop_host_pages();
}

}  // namespace kvt::plugin
