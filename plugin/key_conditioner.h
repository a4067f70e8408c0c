// Key conditioning (docs/algorithm.md 6): keys are stored as (k - mean) / scale, one scale for each kv head of a layer, and means that
// follow the text (key_means.h).
//
// Scales and the first mean are learnt from the first keys and queries of a cache, then frozen until the cache is cleared. While
// learning, the raw keys are kept, so that what was stored with an early estimate is stored again with the better one; a first batch
// of kEnoughRows or more is learnt from at once. Without this, models with large key biases (Qwen2, Qwen2.5) fall apart at 4 bits.
//
// Threads: one at a time, as the tasks of a graph see to; is_learning and the vectors may be read by all between tasks.
#ifndef KVT_PLUGIN_KEY_CONDITIONER_H
#define KVT_PLUGIN_KEY_CONDITIONER_H

#include <cstddef>
#include <cstdint>
#include <vector>

#include "key_means.h"

namespace kvt::plugin {

class KeyConditioner {
 public:
  static constexpr size_t kEnoughRows = 256;

  KeyConditioner(int64_t n_streams, int64_t n_heads, int64_t head_dim, int64_t n_cells);

  bool is_learning() const { return is_learning_; }

  // ---- while learning
  // Whether n_new rows more would make it learn anew: each time that the rows have doubled, and when they are enough.
  bool will_learn(size_t n_new) const;
  // Keeps a raw key row of all heads, [n_heads, head_dim], with its place in the cache: stream * n_cells + cell.
  void keep_row(const float* row, int64_t place);
  // Puts a row in the place of one that is kept. False if none is kept for that place.
  bool replace_row(const float* row, int64_t place);
  // The rows that are kept have been stored with the present estimate.
  void set_stored() { n_stored_ = places_.size(); }
  bool has_unstored() const { return n_stored_ < places_.size(); }
  // A query row that asks these keys. head: the kv head that it reads.
  void add_query(int64_t head, const float* query);
  // Learns if it is time to. Returns the first kept row that has to be stored (anew); all their cells have means from then on.
  size_t learn();
  size_t n_kept() const { return places_.size(); }
  size_t n_learnt() const { return n_learnt_; }  // rows that the present estimate rests on
  const float* kept_row(size_t i) const { return kept_.data() + i * static_cast<size_t>(n_heads_ * head_dim_); }
  int64_t kept_place(size_t i) const { return places_[i]; }
  // To be called when the kept rows are stored: freezes if they were enough.
  void finish_pass();
  // Ends the learning with what is known, for instance when rows are written by other ways than as new keys.
  void freeze();
  // Learns from rows alone and freezes: for a cache that is filled from a saved state. [n_rows, n_heads, head_dim]
  void learn_from_rows(const float* rows, size_t n_rows);

  KeyMeans& means() { return means_; }
  const KeyMeans& means() const { return means_; }

  // The conditioning of a run of cells (KeyMeans::kCells) as states carry it (docs/format.md 9): mean and scale of all heads, to the bit.
  std::vector<uint8_t> bytes_of(int64_t stream, int64_t cell) const;
  // Of a cache without keys: takes over the scale in such bytes, and freezes. Empty: scale 1.
  void adopt_scale(const std::vector<uint8_t>& bytes);
  // The mean of a run of cells that has none. False: the bytes have another scale.
  bool adopt_mean(int64_t stream, int64_t cell, const std::vector<uint8_t>& bytes);

  // Forgets everything: the cache is empty again.
  void reset();

  // ---- use
  // In place, rows [n][head_dim] of the cells cells[0 .. n - 1] of a head.
  void apply(int64_t stream, int64_t head, const int64_t* cells, size_t n, float* keys) const;
  void undo(int64_t stream, int64_t head, int64_t cell, float* key) const;
  const float* scale() const { return scale_.data(); }  // [n_heads, head_dim]
  // Bytes of what was learnt whatever the number of cells.
  size_t fixed_bytes() const { return scale_.size() * sizeof(float); }

  // Counts changes of any conditioner between learning and frozen: plans made for one do not fit the other.
  static uint64_t generation();

 private:
  void estimate(const float* rows, size_t n_rows);

  int64_t n_heads_, head_dim_, n_cells_;
  KeyMeans means_;
  bool is_learning_ = true;
  size_t n_learnt_ = 0;   // kept rows that the present estimate rests on
  size_t n_stored_ = 0;   // kept rows that are in the cache
  std::vector<float> kept_;
  std::vector<int64_t> places_;
  std::vector<double> query_squares_;  // [n_heads, head_dim]
  double n_queries_ = 0;               // of a head
  std::vector<float> scale_;           // [n_heads, head_dim]
};

}  // namespace kvt::plugin

#endif
