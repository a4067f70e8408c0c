// The newest rows of a cache tensor in fp16, beside their codes (KVTURBO_RECENT). Attention reads the last few dozen tokens exactly:
// they carry most of its weight, and so most of what a codec would lose.
//
// Each stream has a list of entries, oldest first, one for each of the cells written last; a cell that is written again moves to the
// end. What a query attends exactly are the newest entries that it sees (kvt_attention), so entries of removed tokens do no harm.
//
// Several sequences may share a stream. Which rows belong together is told by what their queries see: a row carries on the sequence of
// the newest entry that its query sees, unless that one has been carried on by others; then both have the entries so far in common. Of
// each sequence the last window of entries stays, so that none pushes out another's; the list grows as they come. The first rows of
// a sequence that does not begin in the first cells are pinned: they come first in the list and stay until their cells are written.
//
// A batch of many rows is longer than the list, and its first queries need rows that leave it at once. Such a batch has a list of its
// own for the time of its graph: the entries before it and all its rows, in memory that all layers share.
//
// Order: plan_batch, begin_batch before the graph runs, on one thread; then write_batch for each head, on any one thread each; then attention.
#ifndef KVT_PLUGIN_RECENT_ROWS_H
#define KVT_PLUGIN_RECENT_ROWS_H

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "ggml_abi/host_ggml.h"

namespace kvt::plugin {

// What attention reads: n_entries a stream, rows [n_streams, n_heads, n_entries, head_dim].
struct RecentList {
  size_t n_entries = 0;
  const int32_t* cells = nullptr;  // [n_streams, n_entries], -1 = no entry
  const ggml_fp16_t* rows = nullptr;
  size_t n_pinned = 0;  // the first ones, of each stream
};

// What the rows of a batch see, by the mask of the attention that they are written for: fp16 [n_streams, n_queries, n_cells].
struct BatchSight {
  const char* mask = nullptr;  // nullptr: not known; then all is taken for one sequence
  size_t query_stride = 0, stream_stride = 0, n_queries = 1, n_cells = 0;

  bool sees(size_t row, int32_t cell) const;
  // Whether it sees no more than n cells.
  bool sees_at_most(size_t row, size_t n) const;
};

class RecentRows {
 public:
  // Entries kept beyond a window: room to append without moving rows each time, and for entries that are not seen. So many drafts can be
  // rejected and the window before them is still there.
  static constexpr size_t kSlack = 6;
  // A list grows to that many windows, and has that many pinned rows.
  static constexpr size_t kMostWindows = 16, kMostPinned = 64;
  // Entries of a stream with one sequence. A window of 0: no rows are kept.
  static constexpr size_t capacity_for(size_t window) { return window > 0 ? window + kSlack : 0; }

  using Sequences = uint32_t;  // a bit for each sequence
  static constexpr Sequences kPinned = Sequences{1} << 31;

  // A batch of new rows, from plan_batch to the end of its graph.
  struct Batch {
    struct Row {
      int32_t stream = 0, cell = 0;
      bool is_last = true;       // no later row of the batch is for the same cell
      int32_t entry = -1;        // in the lasting list; -1: too old already
      int32_t batch_entry = -1;  // in the batch's own list; -1: it has none
    };
    struct Stream {
      size_t n_new = 0;
      std::vector<int32_t> cells;        // of the lasting list
      std::vector<Sequences> sequences;  // likewise
      std::vector<int32_t> kept;         // where the row of each of its entries was before, in their order; -1: new. Empty: none moves
      std::vector<int32_t> copied;       // the same for the batch's own list
    };
    std::vector<Row> rows;
    std::vector<Stream> streams;
    std::vector<uint8_t> is_written;  // [n_heads]
    size_t capacity = 0;              // of the lasting list
    std::vector<int32_t> grown_cells;  // memory for a larger list
    std::vector<Sequences> grown_sequences;
    std::vector<ggml_fp16_t> grown_rows;
    size_t n_entries = 0;           // of its own list; 0: it has none
    size_t n_pinned = 0;            // of its own list
    std::vector<int32_t> cells;     // of its own list
    ggml_fp16_t* memory = nullptr;  // of its own list: memory_values() of them, from the caller
    size_t first_entry = 0;         // of the batch, or one behind, in the list that attention reads
  };

  RecentRows(size_t n_streams, size_t n_heads, size_t head_dim, size_t window);

  size_t window() const { return window_; }
  size_t capacity() const { return capacity_; }
  // Bytes of rows of one stream.
  size_t stream_bytes() const { return n_heads_ * capacity_ * head_dim_ * sizeof(ggml_fp16_t); }

  // Plans a batch, of which the caller has filled in stream and cell of each row: takes the memory that it needs, but for the rows of its
  // own list, and changes nothing else. So a batch begins for the keys and the values of all layers, or for none, and their lists agree.
  // n_first: rows whose queries see no more cells than that are pinned, unless they lie in the first n_first cells, which are kept
  // elsewhere.
  void plan_batch(Batch* batch, const BatchSight& sight = {}, size_t n_first = 0) const;
  // The list changes at once, the rows are not there yet.
  void begin_batch(Batch* batch) noexcept;
  size_t memory_values(const Batch& batch) const { return n_streams_ * n_heads_ * batch.n_entries * head_dim_; }
  // The graph has failed: heads whose rows were not written are brought to where the list is, and the batch's cells have no entries.
  void abandon_batch(const Batch& batch) noexcept;
  // Writes the rows of one head: row i at src + i * src_stride floats.
  void write_batch(Batch* batch, size_t head, const float* src, size_t src_stride);

  // Entries that list_of will have at most.
  size_t most_entries(const Batch* batch) const {
    return batch != nullptr ? std::max({capacity_, batch->capacity, batch->n_entries}) : capacity_;
  }
  // The list after a batch, or as it stands.
  RecentList list_of(const Batch* batch) const;

  // One row that came otherwise: appends its cell; its rows follow by row(). Those between two batches are one sequence.
  void append(size_t stream, int32_t cell, bool is_pinned = false);
  // The row of an entry, or nullptr if the cell has none.
  ggml_fp16_t* row(size_t stream, size_t head, int32_t cell);
  // Cells begin .. end - 1 have no entries any more.
  void forget(size_t stream, int32_t begin, int32_t end);
  // The entries of cells begin .. end - 1 of another stream are appended, with their rows.
  void append_from(const RecentRows& other, size_t other_stream, size_t stream, int32_t begin, int32_t end);
  // The same entries in the same order as other, as far as they are here: attention takes keys and values by entry.
  void align_with(const RecentRows& other);
  void clear();

 private:
  struct Entry {
    int32_t cell;
    Sequences sequences;
    int32_t source;  // where it was in the lasting list; -1: its row is new
    int32_t row;     // of the batch; -1: none
  };

  int32_t* cells_of(size_t stream) { return cells_.data() + stream * capacity_; }
  const int32_t* cells_of(size_t stream) const { return cells_.data() + stream * capacity_; }
  ggml_fp16_t* rows_of(size_t stream, size_t head) { return rows_.data() + (stream * n_heads_ + head) * capacity_ * head_dim_; }
  const ggml_fp16_t* rows_of(size_t stream, size_t head) const {
    return rows_.data() + (stream * n_heads_ + head) * capacity_ * head_dim_;
  }
  std::vector<Entry> entries_of(size_t stream) const;
  static Sequences free_sequence(std::vector<Entry>* entries);
  static void carry_on(std::vector<Entry>* entries, int32_t cell, int32_t row, const BatchSight& sight, size_t n_first);
  static void put_pinned_first(std::vector<Entry>* entries);
  void drop_old(std::vector<Entry>* entries) const;
  size_t capacity_with(size_t n_entries) const;
  void take_memory(size_t capacity, Batch* batch) const;
  void grow(Batch* batch) noexcept;
  static Batch::Stream to_stream(const std::vector<Entry>& entries);
  void set_entries(size_t stream, const Batch::Stream& plan) noexcept;
  void move_rows(size_t stream, size_t head, const std::vector<int32_t>& sources) noexcept;
  void add_entry(size_t stream, const Entry& entry);

  size_t n_streams_, n_heads_, head_dim_, window_, capacity_;
  std::vector<size_t> size_;      // [n_streams] entries in use
  std::vector<size_t> n_pinned_;  // [n_streams] of them
  std::vector<Sequences> between_;  // [n_streams] the sequence of rows that came since the last batch; 0: none yet
  std::vector<int32_t> cells_;    // [n_streams, capacity]
  std::vector<Sequences> sequences_;  // [n_streams, capacity]
  std::vector<ggml_fp16_t> rows_;  // [n_streams, n_heads, capacity, head_dim]
};

}  // namespace kvt::plugin

#endif
