#include "recent_rows.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

namespace kvt::plugin {
namespace {

constexpr uint16_t kHalfMinusInfinity = 0xfc00;
constexpr unsigned kMostSequences = 31;  // bits beside kPinned

const uint16_t* mask_row(const BatchSight& sight, size_t row) {
  return reinterpret_cast<const uint16_t*>(sight.mask + row / sight.n_queries * sight.stream_stride +
                                           row % sight.n_queries * sight.query_stride);
}

}  // namespace

bool BatchSight::sees(size_t row, int32_t cell) const {
  if (mask == nullptr) return true;
  return static_cast<size_t>(cell) < n_cells && mask_row(*this, row)[cell] != kHalfMinusInfinity;
}

bool BatchSight::sees_at_most(size_t row, size_t n) const {
  if (mask == nullptr || n == 0) return false;
  size_t n_seen = 0;
  const uint16_t* m = mask_row(*this, row);
  for (size_t cell = 0; cell < n_cells && n_seen <= n; ++cell) n_seen += m[cell] != kHalfMinusInfinity;
  return n_seen <= n;
}

RecentRows::RecentRows(size_t n_streams, size_t n_heads, size_t head_dim, size_t window)
    : n_streams_(n_streams),
      n_heads_(n_heads),
      head_dim_(head_dim),
      window_(window),
      capacity_(capacity_for(window)),
      size_(n_streams, 0),
      n_pinned_(n_streams, 0),
      between_(n_streams, 0),
      cells_(n_streams * capacity_, -1),
      sequences_(n_streams * capacity_, 0),
      rows_(n_streams * n_heads * capacity_ * head_dim, 0) {}

// Without gaps.
std::vector<RecentRows::Entry> RecentRows::entries_of(size_t stream) const {
  std::vector<Entry> entries;
  entries.reserve(size_[stream] + kSlack);
  const int32_t* cells = cells_of(stream);
  for (size_t e = 0; e < size_[stream]; ++e) {
    if (cells[e] >= 0) entries.push_back({cells[e], sequences_[stream * capacity_ + e], static_cast<int32_t>(e), -1});
  }
  return entries;
}

// A bit that no entry has; if all are taken, the one whose newest entry is the oldest is taken away from it.
RecentRows::Sequences RecentRows::free_sequence(std::vector<Entry>* entries) {
  Sequences used = 0, last = 0;
  for (auto it = entries->rbegin(); it != entries->rend(); ++it) {
    const Sequences fresh = it->sequences & ~kPinned & ~used;
    if (fresh != 0) last = fresh & (~fresh + 1);
    used |= it->sequences;
  }
  for (unsigned bit = 0; bit < kMostSequences; ++bit) {
    if ((used >> bit & 1) == 0) return Sequences{1} << bit;
  }
  for (Entry& e : *entries) e.sequences &= ~last;
  return last;
}

// Row `row` of a batch is entered, behind all others, and pinned if it is one of the first n_first of its sequence.
void RecentRows::carry_on(std::vector<Entry>* entries, int32_t cell, int32_t row, const BatchSight& sight, size_t n_first) {
  Sequences newer = 0, mine = 0;
  bool may_be_first = true;  // counting what it sees takes time
  for (auto it = entries->rbegin(); it != entries->rend(); ++it) {
    if (sight.sees(static_cast<size_t>(row), it->cell)) {
      may_be_first = (it->sequences & kPinned) != 0 || static_cast<size_t>(it->cell) < n_first;
      mine = it->sequences & ~newer & ~kPinned;
      mine &= ~mine + 1;
      break;
    }
    newer |= it->sequences;
  }
  if (mine == 0) {
    mine = free_sequence(entries);
    for (Entry& e : *entries) {
      if (sight.sees(static_cast<size_t>(row), e.cell)) e.sequences |= mine;
    }
  }
  const bool is_first = may_be_first && static_cast<size_t>(cell) >= n_first && sight.sees_at_most(static_cast<size_t>(row), n_first);
  entries->push_back({cell, mine | (is_first ? kPinned : 0), -1, row});
}

void RecentRows::put_pinned_first(std::vector<Entry>* entries) {
  std::stable_partition(entries->begin(), entries->end(), [](const Entry& e) { return (e.sequences & kPinned) != 0; });
}

// Keeps what the list has room for: pinned entries, and of each sequence the last window; before a batch of drafts, of which only the
// first row may stay, one that lasts if the others go.
void RecentRows::drop_old(std::vector<Entry>* entries) const {
  size_t n_pinned = 0, n_of[kMostSequences] = {}, n_drafts[kMostSequences] = {};
  for (const Entry& e : *entries) {
    for (unsigned bit = 0; bit < kMostSequences; ++bit) n_drafts[bit] += e.row >= 0 && (e.sequences >> bit & 1) != 0;
  }
  for (size_t& n : n_drafts) n = std::min(kSlack, n > 0 ? n - 1 : 0);
  std::vector<Entry> kept;
  for (auto it = entries->rbegin(); it != entries->rend(); ++it) {
    bool is_kept = (it->sequences & kPinned) != 0 && n_pinned++ < kMostPinned;
    for (unsigned bit = 0; bit < kMostSequences; ++bit) {
      if ((it->sequences >> bit & 1) != 0 && n_of[bit]++ < window_ + n_drafts[bit]) is_kept = true;
    }
    if (is_kept) kept.push_back(*it);
  }
  const size_t most = kMostWindows * capacity_for(window_);
  std::reverse(kept.begin(), kept.end());
  while (kept.size() > most) {
    const auto oldest = std::find_if(kept.begin(), kept.end(), [](const Entry& e) { return (e.sequences & kPinned) == 0; });
    kept.erase(oldest != kept.end() ? oldest : kept.begin());
  }
  *entries = std::move(kept);
}

size_t RecentRows::capacity_with(size_t n_entries) const {
  return n_entries <= capacity_ ? capacity_ : (n_entries + kSlack + 15) / 16 * 16;
}

void RecentRows::take_memory(size_t capacity, Batch* batch) const {
  batch->capacity = capacity;
  if (capacity == capacity_) return;
  batch->grown_cells.assign(n_streams_ * capacity, -1);
  batch->grown_sequences.assign(n_streams_ * capacity, 0);
  batch->grown_rows.assign(n_streams_ * n_heads_ * capacity * head_dim_, 0);
}

void RecentRows::grow(Batch* batch) noexcept {
  if (batch->capacity == capacity_) return;
  const size_t capacity = batch->capacity;
  for (size_t s = 0; s < n_streams_; ++s) {
    std::copy_n(cells_of(s), capacity_, batch->grown_cells.data() + s * capacity);
    std::copy_n(sequences_.data() + s * capacity_, capacity_, batch->grown_sequences.data() + s * capacity);
    for (size_t head = 0; head < n_heads_; ++head) {
      std::copy_n(rows_of(s, head), capacity_ * head_dim_, batch->grown_rows.data() + (s * n_heads_ + head) * capacity * head_dim_);
    }
  }
  cells_.swap(batch->grown_cells);
  sequences_.swap(batch->grown_sequences);
  rows_.swap(batch->grown_rows);
  capacity_ = capacity;
}

RecentRows::Batch::Stream RecentRows::to_stream(const std::vector<Entry>& entries) {
  const size_t n = entries.size();
  Batch::Stream plan;
  plan.cells.resize(n);
  plan.sequences.resize(n);
  plan.kept.resize(n);
  bool has_moved = false;
  for (size_t e = 0; e < n; ++e) {
    plan.cells[e] = entries[e].cell;
    plan.sequences[e] = entries[e].sequences;
    plan.kept[e] = entries[e].source;
    has_moved = has_moved || (entries[e].source >= 0 && entries[e].source != static_cast<int32_t>(e));
  }
  if (!has_moved) plan.kept.clear();
  return plan;
}

// The list becomes the planned one, which fits; rows follow by move_rows.
void RecentRows::set_entries(size_t stream, const Batch::Stream& plan) noexcept {
  int32_t* cells = cells_of(stream);
  std::fill(cells, cells + capacity_, -1);
  std::copy(plan.cells.begin(), plan.cells.end(), cells);
  std::copy(plan.sequences.begin(), plan.sequences.end(), sequences_.begin() + static_cast<ptrdiff_t>(stream * capacity_));
  n_pinned_[stream] = static_cast<size_t>(
      std::count_if(plan.sequences.begin(), plan.sequences.end(), [](Sequences of_it) { return (of_it & kPinned) != 0; }));
  size_[stream] = plan.cells.size();
}

// Entries keep their order. So rows that move down, from the first on, and then those that move up, from the last on, find their places free.
void RecentRows::move_rows(size_t stream, size_t head, const std::vector<int32_t>& sources) noexcept {
  ggml_fp16_t* rows = rows_of(stream, head);
  const auto move = [&](size_t e) {
    std::memcpy(rows + e * head_dim_, rows + static_cast<size_t>(sources[e]) * head_dim_, head_dim_ * sizeof(ggml_fp16_t));
  };
  for (size_t e = 0; e < sources.size(); ++e) {
    if (sources[e] > static_cast<int32_t>(e)) move(e);
  }
  for (size_t e = sources.size(); e-- > 0;) {
    if (sources[e] >= 0 && sources[e] < static_cast<int32_t>(e)) move(e);
  }
}

void RecentRows::plan_batch(Batch* batch, const BatchSight& sight, size_t n_first) const {
  const size_t n_rows = batch->rows.size();
  batch->streams.assign(n_streams_, {});
  batch->is_written.assign(n_heads_, 0);
  batch->memory = nullptr;
  // A cell that is written twice has one entry, for its last row.
  std::unordered_set<int64_t> written;
  const auto place = [](size_t stream, int32_t cell) { return static_cast<int64_t>(stream) << 32 | cell; };
  size_t most_new = 0;
  for (size_t i = n_rows; i-- > 0;) {
    Batch::Row* row = &batch->rows[i];
    row->entry = row->batch_entry = -1;
    row->is_last = n_rows == 1 || written.insert(place(static_cast<size_t>(row->stream), row->cell)).second;
    if (row->is_last) most_new = std::max(most_new, ++batch->streams[static_cast<size_t>(row->stream)].n_new);
  }
  std::vector<std::vector<Entry>> lists(n_streams_);
  for (size_t s = 0; s < n_streams_; ++s) {
    lists[s] = entries_of(s);
    std::erase_if(lists[s], [&](const Entry& e) {
      return n_rows == 1 ? batch->rows[0].stream == static_cast<int32_t>(s) && batch->rows[0].cell == e.cell : written.contains(place(s, e.cell));
    });
  }
  for (size_t i = 0; i < n_rows; ++i) {
    const Batch::Row& row = batch->rows[i];
    if (row.is_last) carry_on(&lists[static_cast<size_t>(row.stream)], row.cell, static_cast<int32_t>(i), sight, n_first);
  }
  const bool has_own_list = most_new > kSlack;
  batch->n_entries = batch->n_pinned = batch->first_entry = 0;
  for (std::vector<Entry>& list : lists) {
    put_pinned_first(&list);
    if (has_own_list) batch->n_entries = std::max(batch->n_entries, list.size());
  }
  if (has_own_list) batch->cells.assign(n_streams_ * batch->n_entries, -1);
  const auto find_first = [&](const std::vector<Entry>& list) {
    const auto first = std::find_if(list.begin(), list.end(), [](const Entry& e) { return e.row >= 0 && (e.sequences & kPinned) == 0; });
    batch->first_entry = std::max(batch->first_entry, static_cast<size_t>(first - list.begin()));
  };
  size_t capacity = capacity_;
  for (size_t s = 0; s < n_streams_; ++s) {
    std::vector<Entry>& list = lists[s];
    std::vector<int32_t> copied;
    size_t n_pinned = 0;
    for (size_t e = 0; has_own_list && e < list.size(); ++e) {
      batch->cells[s * batch->n_entries + e] = list[e].cell;
      copied.push_back(list[e].source);
      n_pinned += (list[e].sequences & kPinned) != 0;
      if (list[e].row >= 0) batch->rows[static_cast<size_t>(list[e].row)].batch_entry = static_cast<int32_t>(e);
    }
    batch->n_pinned = std::max(batch->n_pinned, n_pinned);
    if (has_own_list) find_first(list);
    const size_t n_new = batch->streams[s].n_new;
    if (n_new > 0) {
      if (list.size() > capacity_) drop_old(&list);
      capacity = std::max(capacity, capacity_with(list.size()));
      if (!has_own_list) find_first(list);
      for (size_t e = 0; e < list.size(); ++e) {
        if (list[e].row >= 0) batch->rows[static_cast<size_t>(list[e].row)].entry = static_cast<int32_t>(e);
      }
      batch->streams[s] = to_stream(list);
      batch->streams[s].n_new = n_new;
    }
    batch->streams[s].copied = std::move(copied);
  }
  take_memory(capacity, batch);
}

void RecentRows::begin_batch(Batch* batch) noexcept {
  grow(batch);
  for (size_t s = 0; s < n_streams_; ++s) {
    if (batch->streams[s].n_new == 0) continue;
    between_[s] = 0;
    set_entries(s, batch->streams[s]);
  }
}

void RecentRows::abandon_batch(const Batch& batch) noexcept {
  for (size_t s = 0; s < n_streams_; ++s) {
    for (size_t head = 0; head < n_heads_; ++head) {
      if (batch.is_written[head] == 0) move_rows(s, head, batch.streams[s].kept);
    }
  }
  for (const Batch::Row& row : batch.rows) forget(static_cast<size_t>(row.stream), row.cell, row.cell + 1);
}

void RecentRows::write_batch(Batch* written, size_t head, const float* src, size_t src_stride) {
  const Batch& batch = *written;
  written->is_written[head] = 1;
  const size_t bytes = head_dim_ * sizeof(ggml_fp16_t);
  const auto own_row = [&](size_t stream, size_t entry) {
    return batch.memory + ((stream * n_heads_ + head) * batch.n_entries + entry) * head_dim_;
  };
  for (size_t s = 0; s < n_streams_; ++s) {
    const Batch::Stream& plan = batch.streams[s];
    for (size_t e = 0; e < plan.copied.size(); ++e) {
      if (plan.copied[e] >= 0) std::memcpy(own_row(s, e), rows_of(s, head) + static_cast<size_t>(plan.copied[e]) * head_dim_, bytes);
    }
    move_rows(s, head, plan.kept);
  }
  for (size_t i = 0; i < batch.rows.size(); ++i) {
    const Batch::Row& row = batch.rows[i];
    if (!row.is_last) continue;
    const auto stream = static_cast<size_t>(row.stream);
    ggml_fp16_t* lasting = row.entry >= 0 ? rows_of(stream, head) + static_cast<size_t>(row.entry) * head_dim_ : nullptr;
    ggml_fp16_t* own = row.batch_entry >= 0 ? own_row(stream, static_cast<size_t>(row.batch_entry)) : nullptr;
    if (own == nullptr && lasting == nullptr) continue;
    host().ggml_fp32_to_fp16_row(src + i * src_stride, own != nullptr ? own : lasting, static_cast<int64_t>(head_dim_));
    if (own != nullptr && lasting != nullptr) std::memcpy(lasting, own, bytes);
  }
}

RecentList RecentRows::list_of(const Batch* batch) const {
  if (batch != nullptr && batch->n_entries > 0) return {batch->n_entries, batch->cells.data(), batch->memory, batch->n_pinned};
  return {capacity_, cells_.data(), rows_.data(), *std::max_element(n_pinned_.begin(), n_pinned_.end())};
}

// At the end, or among the pinned ones.
void RecentRows::add_entry(size_t stream, const Entry& entry) {
  if (size_[stream] < capacity_ && (entry.sequences & kPinned) == 0) {
    cells_of(stream)[size_[stream]] = entry.cell;
    sequences_[stream * capacity_ + size_[stream]++] = entry.sequences;
    return;
  }
  std::vector<Entry> list = entries_of(stream);
  list.push_back(entry);
  put_pinned_first(&list);
  if (list.size() > capacity_) drop_old(&list);
  Batch memory;
  take_memory(capacity_with(list.size()), &memory);
  grow(&memory);
  const Batch::Stream plan = to_stream(list);
  set_entries(stream, plan);
  for (size_t head = 0; head < n_heads_; ++head) move_rows(stream, head, plan.kept);
}

void RecentRows::append(size_t stream, int32_t cell, bool is_pinned) {
  forget(stream, cell, cell + 1);
  if (between_[stream] == 0) {
    std::vector<Entry> list = entries_of(stream);
    between_[stream] = free_sequence(&list);
    for (const Entry& e : list) sequences_[stream * capacity_ + static_cast<size_t>(e.source)] = e.sequences;
  }
  add_entry(stream, {cell, between_[stream] | (is_pinned ? kPinned : 0), -1, -1});
}

ggml_fp16_t* RecentRows::row(size_t stream, size_t head, int32_t cell) {
  const int32_t* cells = cells_of(stream);
  for (size_t e = size_[stream]; e-- > 0;) {
    if (cells[e] == cell) return rows_of(stream, head) + e * head_dim_;
  }
  return nullptr;
}

void RecentRows::forget(size_t stream, int32_t begin, int32_t end) {
  int32_t* cells = cells_of(stream);
  for (size_t e = 0; e < size_[stream]; ++e) {
    if (cells[e] >= begin && cells[e] < end) cells[e] = -1;
  }
}

void RecentRows::append_from(const RecentRows& other, size_t other_stream, size_t stream, int32_t begin, int32_t end) {
  for (size_t e = 0; e < other.size_[other_stream]; ++e) {
    const int32_t cell = other.cells_of(other_stream)[e];
    if (cell < begin || cell >= end) continue;
    append(stream, cell, (other.sequences_[other_stream * other.capacity_ + e] & kPinned) != 0);
    for (size_t head = 0; head < n_heads_; ++head) {
      std::copy_n(other.rows_of(other_stream, head) + e * head_dim_, head_dim_, row(stream, head, cell));
    }
  }
}

void RecentRows::align_with(const RecentRows& other) {
  if (cells_ == other.cells_ && size_ == other.size_) return;
  if (n_streams_ != other.n_streams_) return clear();
  Batch memory;
  take_memory(std::max(capacity_, other.capacity_), &memory);
  grow(&memory);
  for (size_t s = 0; s < n_streams_; ++s) {
    std::vector<Entry> list;
    const int32_t* begin = cells_of(s);
    for (size_t e = 0; e < other.size_[s]; ++e) {
      const int32_t cell = other.cells_of(s)[e];
      const int32_t* found = std::find(begin, begin + size_[s], cell);
      const bool is_here = cell >= 0 && found != begin + size_[s];
      list.push_back({is_here ? cell : -1, other.sequences_[s * other.capacity_ + e], is_here ? static_cast<int32_t>(found - begin) : -1, -1});
    }
    const Batch::Stream plan = to_stream(list);
    set_entries(s, plan);
    for (size_t head = 0; head < n_heads_; ++head) move_rows(s, head, plan.kept);
    between_[s] = other.between_[s];
  }
}

void RecentRows::clear() {
  std::fill(size_.begin(), size_.end(), size_t{0});
  std::fill(n_pinned_.begin(), n_pinned_.end(), size_t{0});
  std::fill(between_.begin(), between_.end(), Sequences{0});
  std::fill(cells_.begin(), cells_.end(), -1);
}

}  // namespace kvt::plugin
