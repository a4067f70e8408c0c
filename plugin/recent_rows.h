// The newest rows of a cache tensor in fp16, beside their codes (KVTURBO_RECENT). Attention reads the last few dozen tokens exactly:
// they carry most of its weight, and so most of what a codec would lose.
//
// Each stream has a list of entries, oldest first, one for each of the cells written last; a cell that is written again moves to the
// end. What a query attends exactly are the newest entries that it sees (kvt_attention), so entries of removed tokens do no harm.
//
// A batch of many rows is longer than the list, and its first queries need rows that leave it at once. Such a batch has a list of its
// own for the time of its graph: the entries before it and all its rows, in memory that all layers share.
//
// Order: plan_batch and begin_batch before the graph runs, on one thread; then write_batch for each head, on any one thread each; then
// attention. If the graph stops in between: abandon_batch.
#ifndef KVT_PLUGIN_RECENT_ROWS_H
#define KVT_PLUGIN_RECENT_ROWS_H

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "ggml_abi/host_ggml.h"
#include "kvturbo/kvturbo.h"

namespace kvt::plugin {

// What attention reads: n_entries a stream, rows [n_streams, n_heads, n_entries, head_dim].
struct RecentList {
  size_t n_entries = 0;
  const int32_t* cells = nullptr;  // [n_streams, n_entries], -1 = no entry
  const ggml_fp16_t* rows = nullptr;
};

class RecentRows {
 public:
  // Entries kept beyond a window: room to append without moving rows each time, and for entries that are not seen. So many drafts can be
  // rejected and the window before them is still there.
  static constexpr size_t kSlack = 6;
  // Entries of a stream. A window of 0: no rows are kept.
  static constexpr size_t capacity_for(size_t window) { return window > 0 ? window + kSlack : 0; }

  // A batch of new rows, from plan_batch to the end of its graph.
  struct Batch {
    struct Row {
      int32_t stream = 0, cell = 0;
      bool is_last = true;       // no later row of the batch is for the same cell
      int32_t entry = -1;        // in the lasting list; -1: too old already
      int32_t batch_entry = -1;  // in the batch's own list; -1: it has none
    };
    // Entries, oldest first: entry[i] of the list becomes the i-th.
    struct Picked {
      size_t n = 0;
      std::array<uint8_t, KVT_MAX_RECENT + kSlack> entry{};
    };
    struct Stream {  // what happens to the entries of a stream before its new rows come
      Picked kept;    // these become the first ones; none: they stay where they are
      Picked copied;  // these become the first of the batch's list
      size_t n_new = 0, next = 0, next_in_batch = 0, n_too_old = 0;
    };
    std::vector<Row> rows;
    std::vector<Stream> streams;
    std::vector<uint8_t> is_written;  // [n_heads]
    size_t n_entries = 0;           // of its own list; 0: it has none
    std::vector<int32_t> cells;     // of its own list
    ggml_fp16_t* memory = nullptr;  // of its own list: memory_values() of them, from the caller
    size_t first_entry = 0;         // of the batch, in the list that attention reads; the last one if streams differ
  };

  RecentRows(size_t n_streams, size_t n_heads, size_t head_dim, size_t window);

  size_t window() const { return window_; }
  size_t capacity() const { return capacity_; }
  // Bytes of rows of one stream.
  size_t stream_bytes() const { return n_heads_ * capacity_ * head_dim_ * sizeof(ggml_fp16_t); }

  // Plans a batch, of which the caller has filled in stream and cell of each row: takes the memory that it needs, but for the rows of its
  // own list, and changes nothing else. So a batch begins for the keys and the values of all layers, or for none, and their lists agree.
  void plan_batch(Batch* batch) const;
  // The list changes at once, the rows are not there yet.
  void begin_batch(Batch* batch) noexcept;
  size_t memory_values(const Batch& batch) const { return n_streams_ * n_heads_ * batch.n_entries * head_dim_; }
  // The graph has failed: heads whose rows were not written are brought to where the list is, and the batch's cells have no entries.
  void abandon_batch(const Batch& batch) noexcept;
  // Writes the rows of one head: row i at src + i * src_stride floats.
  void write_batch(Batch* batch, size_t head, const float* src, size_t src_stride);

  // Entries that list_of will have at most.
  size_t most_entries(const Batch* batch) const { return std::max(capacity_, batch != nullptr ? batch->n_entries : 0); }
  // The list after a batch, or as it stands.
  RecentList list_of(const Batch* batch) const;

  // One row that came otherwise: appends its cell; its rows follow by write_row.
  void append(size_t stream, int32_t cell);
  // The row of an entry, or nullptr if the cell has none.
  ggml_fp16_t* row(size_t stream, size_t head, int32_t cell);
  // The same for the newest entries only, as many as a window has: what is kept beyond depends on how rows came.
  const ggml_fp16_t* row_in_window(size_t stream, size_t head, int32_t cell) const;
  // Cells begin .. end - 1 have no entries any more.
  void forget(size_t stream, int32_t begin, int32_t end);
  // The entries of cells begin .. end - 1 of another stream are appended, with their rows.
  void append_from(const RecentRows& other, size_t other_stream, size_t stream, int32_t begin, int32_t end);
  void clear();

 private:
  int32_t* cells_of(size_t stream) { return cells_.data() + stream * capacity_; }
  const int32_t* cells_of(size_t stream) const { return cells_.data() + stream * capacity_; }
  ggml_fp16_t* rows_of(size_t stream, size_t head) { return rows_.data() + (stream * n_heads_ + head) * capacity_ * head_dim_; }
  const ggml_fp16_t* rows_of(size_t stream, size_t head) const {
    return rows_.data() + (stream * n_heads_ + head) * capacity_ * head_dim_;
  }
  Batch::Picked pick_last(size_t stream, size_t n_most) const;
  void keep_last(size_t stream, size_t n_most, Batch::Stream* plan);
  void move_rows(const Batch::Stream& plan, size_t stream, size_t head);

  size_t n_streams_, n_heads_, head_dim_, window_, capacity_;
  std::vector<size_t> size_;    // [n_streams] entries in use
  std::vector<int32_t> cells_;  // [n_streams, capacity]
  std::vector<ggml_fp16_t> rows_;  // [n_streams, n_heads, capacity, head_dim]
};

}  // namespace kvt::plugin

#endif
