#include "recent_rows.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

namespace kvt::plugin {

RecentRows::RecentRows(size_t n_streams, size_t n_heads, size_t head_dim, size_t window)
    : n_streams_(n_streams),
      n_heads_(n_heads),
      head_dim_(head_dim),
      window_(window),
      capacity_(capacity_for(window)),
      size_(n_streams, 0),
      cells_(n_streams * capacity_, -1),
      rows_(n_streams * n_heads * capacity_ * head_dim, 0) {}

// The last n_most entries that still have a cell. Those of rejected drafts, whose cells were written again, have none.
RecentRows::Batch::Picked RecentRows::pick_last(size_t stream, size_t n_most) const {
  const int32_t* cells = cells_of(stream);
  Batch::Picked picked;
  size_t begin = size_[stream];
  for (size_t n = 0; begin > 0 && n < n_most; --begin) n += cells[begin - 1] >= 0;
  for (size_t e = begin; e < size_[stream]; ++e) {
    if (cells[e] >= 0) picked.entry[picked.n++] = static_cast<uint8_t>(e);
  }
  return picked;
}

// The last n_most entries become the first ones; their rows follow by move_rows.
void RecentRows::keep_last(size_t stream, size_t n_most, Batch::Stream* plan) {
  int32_t* cells = cells_of(stream);
  plan->kept = pick_last(stream, n_most);
  for (size_t i = 0; i < plan->kept.n; ++i) cells[i] = cells[plan->kept.entry[i]];
  std::fill(cells + plan->kept.n, cells + capacity_, -1);
  size_[stream] = plan->kept.n;
}

void RecentRows::move_rows(const Batch::Stream& plan, size_t stream, size_t head) {
  ggml_fp16_t* rows = rows_of(stream, head);
  for (size_t i = 0; i < plan.kept.n; ++i) {
    const size_t from = plan.kept.entry[i];  // never before i
    if (from != i) std::memcpy(rows + i * head_dim_, rows + from * head_dim_, head_dim_ * sizeof(ggml_fp16_t));
  }
}

void RecentRows::plan_batch(Batch* batch) const {
  const size_t n_rows = batch->rows.size();
  batch->streams.assign(n_streams_, {});
  batch->is_written.assign(n_heads_, 0);
  batch->memory = nullptr;
  // A cell that is written twice has one entry, for its last row.
  std::unordered_set<int64_t> seen;
  size_t most_new = 0;
  for (size_t i = n_rows; i-- > 0;) {
    Batch::Row* row = &batch->rows[i];
    row->entry = row->batch_entry = -1;
    row->is_last = n_rows == 1 || seen.insert(int64_t{row->stream} << 32 | row->cell).second;
    if (row->is_last) most_new = std::max(most_new, ++batch->streams[static_cast<size_t>(row->stream)].n_new);
  }
  const bool has_own_list = most_new > kSlack;
  batch->n_entries = has_own_list ? window_ + most_new : 0;
  if (has_own_list) batch->cells.assign(n_streams_ * batch->n_entries, -1);
}

void RecentRows::begin_batch(Batch* batch) noexcept {
  const size_t n_rows = batch->rows.size();
  const bool has_own_list = batch->n_entries > 0;
  for (const Batch::Row& row : batch->rows) {
    if (row.is_last) forget(static_cast<size_t>(row.stream), row.cell, row.cell + 1);
  }
  batch->first_entry = 0;
  for (size_t s = 0; s < n_streams_; ++s) {
    Batch::Stream* plan = &batch->streams[s];
    if (has_own_list) {
      plan->copied = pick_last(s, window_);
      plan->next_in_batch = plan->copied.n;
      for (size_t i = 0; i < plan->copied.n; ++i) batch->cells[s * batch->n_entries + i] = cells_of(s)[plan->copied.entry[i]];
    }
    if (size_[s] + plan->n_new > capacity_) {
      plan->n_too_old = plan->n_new > capacity_ ? plan->n_new - capacity_ : 0;
      const size_t room = capacity_ - (plan->n_new - plan->n_too_old);
      keep_last(s, std::min(room, window_), plan);
    }
    plan->next = size_[s];
    size_[s] += plan->n_new - plan->n_too_old;
    batch->first_entry = std::max(batch->first_entry, has_own_list ? plan->next_in_batch : plan->next);
  }
  for (size_t i = 0; i < n_rows; ++i) {
    Batch::Row* row = &batch->rows[i];
    if (!row->is_last) continue;
    const auto stream = static_cast<size_t>(row->stream);
    Batch::Stream* plan = &batch->streams[stream];
    if (has_own_list) {
      row->batch_entry = static_cast<int32_t>(plan->next_in_batch++);
      batch->cells[stream * batch->n_entries + static_cast<size_t>(row->batch_entry)] = row->cell;
    }
    if (plan->n_too_old > 0) {
      --plan->n_too_old;
      continue;
    }
    row->entry = static_cast<int32_t>(plan->next++);
    cells_of(stream)[row->entry] = row->cell;
  }
}

void RecentRows::abandon_batch(const Batch& batch) noexcept {
  for (size_t s = 0; s < n_streams_; ++s) {
    for (size_t head = 0; head < n_heads_; ++head) {
      if (batch.is_written[head] == 0) move_rows(batch.streams[s], s, head);
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
    for (size_t i = 0; i < plan.copied.n; ++i) std::memcpy(own_row(s, i), rows_of(s, head) + plan.copied.entry[i] * head_dim_, bytes);
    move_rows(plan, s, head);
  }
  for (size_t i = 0; i < batch.rows.size(); ++i) {
    const Batch::Row& row = batch.rows[i];
    if (!row.is_last) continue;
    const auto stream = static_cast<size_t>(row.stream);
    ggml_fp16_t* lasting = row.entry >= 0 ? rows_of(stream, head) + static_cast<size_t>(row.entry) * head_dim_ : nullptr;
    ggml_fp16_t* own = row.batch_entry >= 0 ? own_row(stream, static_cast<size_t>(row.batch_entry)) : nullptr;
    host().ggml_fp32_to_fp16_row(src + i * src_stride, own != nullptr ? own : lasting, static_cast<int64_t>(head_dim_));
    if (own != nullptr && lasting != nullptr) std::memcpy(lasting, own, bytes);
  }
}

RecentList RecentRows::list_of(const Batch* batch) const {
  if (batch != nullptr && batch->n_entries > 0) return {batch->n_entries, batch->cells.data(), batch->memory};
  return {capacity_, cells_.data(), rows_.data()};
}

void RecentRows::append(size_t stream, int32_t cell) {
  forget(stream, cell, cell + 1);
  if (size_[stream] == capacity_) {
    Batch::Stream plan;
    keep_last(stream, window_, &plan);
    for (size_t head = 0; head < n_heads_; ++head) move_rows(plan, stream, head);
  }
  cells_of(stream)[size_[stream]++] = cell;
}

ggml_fp16_t* RecentRows::row(size_t stream, size_t head, int32_t cell) {
  const int32_t* cells = cells_of(stream);
  for (size_t e = size_[stream]; e-- > 0;) {
    if (cells[e] == cell) return rows_of(stream, head) + e * head_dim_;
  }
  return nullptr;
}

const ggml_fp16_t* RecentRows::row_in_window(size_t stream, size_t head, int32_t cell) const {
  const int32_t* cells = cells_of(stream);
  size_t n_seen = 0;
  for (size_t e = size_[stream]; e-- > 0 && n_seen < window_;) {
    if (cells[e] == cell) return rows_of(stream, head) + e * head_dim_;
    n_seen += cells[e] >= 0;
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
    append(stream, cell);
    for (size_t head = 0; head < n_heads_; ++head) {
      std::copy_n(other.rows_of(other_stream, head) + e * head_dim_, head_dim_, row(stream, head, cell));
    }
  }
}

void RecentRows::clear() {
  std::fill(size_.begin(), size_.end(), size_t{0});
  std::fill(cells_.begin(), cells_.end(), -1);
}

}  // namespace kvt::plugin
