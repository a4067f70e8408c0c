// The means that are subtracted from keys (docs/algorithm.md 6): one for every kCells cells of a stream and head, as int8 with a unit.
//
// One mean for a whole cache would not last: rotary positions turn it as the text goes on, and a mean learnt at its beginning is worse
// than none at depth 8K. So each run of cells has its own, set when the first key of the run comes, from the keys before it, and fixed
// while cells exist. As only earlier keys count, codes do not depend on how tokens are batched.
//
// Threads: heads may be worked on at the same time, one head by one thread; settle by any while no key is added.
#ifndef KVT_PLUGIN_KEY_MEANS_H
#define KVT_PLUGIN_KEY_MEANS_H

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvt::plugin {

class KeyMeans {
 public:
  static constexpr int64_t kCells = 512;

  KeyMeans(int64_t n_streams, int64_t n_heads, int64_t head_dim, int64_t n_cells);

  // Forgets everything.
  void reset();
  // The mean of the first cells of every stream, [n_heads, head_dim]. Call it before keys are added.
  void set_first(const float* means);

  // Whether cell lies in a run of cells without a mean. Encoding needs one: add the key first.
  bool is_new(int64_t stream, int64_t cell) const { return unit_at(stream, 0, cell / kCells) < 0; }
  // Tells of a raw key [head_dim] that is about to be stored: sets the mean of its cells if it is the first there.
  void add_key(int64_t stream, int64_t head, int64_t cell, const float* key);

  // The mean of the cells around cell, [head_dim], from a saved state.
  void set_codes(int64_t stream, int64_t head, int64_t cell, const int8_t* codes, float unit);

  // Before a key is stored that add_key was not told of: cells without a mean keep zeros from then on. By any thread.
  void settle(int64_t stream, int64_t head, int64_t cell);

  // mean[i] = unit * codes[i]; zeros for a run of cells without a mean.
  const int8_t* codes(int64_t stream, int64_t head, int64_t cell) const {
    return codes_.data() + at(stream, head, cell / kCells) * head_dim_;
  }
  float unit(int64_t stream, int64_t head, int64_t cell) const {
    const float unit = unit_at(stream, head, cell / kCells);
    return unit < 0 ? 0.0f : unit;
  }

  // All means, [n_streams, n_heads, n_means, head_dim] and [n_streams, n_heads, n_means]; they stay where they are. A unit below 0
  // marks zeros that may still be set.
  const int8_t* all_codes() const { return codes_.data(); }
  const float* all_units() const { return units_.data(); }
  int64_t n_means() const { return n_means_; }

  // Takes over the means of cells begin .. end - 1 of another stream, whose codes are copied with them. False, with nothing changed, if
  // a run of cells is not covered and has another mean.
  bool copy(int64_t from_stream, int64_t to_stream, int64_t begin, int64_t end);

  // Bytes for a cell of all heads, and what a stream needs beside them.
  double cell_bytes() const { return static_cast<double>(n_heads_ * (head_dim_ + 4)) / static_cast<double>(kCells); }
  size_t fixed_bytes() const;

 private:
  // Keys of one run of cells so far.
  struct History {
    int64_t run = -1;
    int64_t n = 0;
    int64_t n_before_newest = 0;  // keys in the sum before the newest block
  };
  static constexpr int64_t kBlockKeys = 64;

  int64_t at(int64_t stream, int64_t head, int64_t run) const { return (stream * n_heads_ + head) * n_means_ + run; }
  float unit_at(int64_t stream, int64_t head, int64_t run) const {
    return std::atomic_ref<float>(const_cast<float&>(units_[static_cast<size_t>(at(stream, head, run))])).load(std::memory_order_relaxed);
  }
  void set(int64_t stream, int64_t head, int64_t run, const float* mean);
  void predict(int64_t stream, int64_t head, int64_t run);
  float* sum_of(int64_t stream, int64_t head) { return sums_.data() + (stream * n_heads_ + head) * 2 * head_dim_; }

  int64_t n_streams_, n_heads_, head_dim_, n_means_;
  std::vector<int8_t> codes_;
  std::vector<float> units_;
  std::vector<History> history_;  // [n_streams, n_heads]
  std::vector<float> sums_;       // [n_streams, n_heads, 2, head_dim]: of a run's keys, and as it was before the newest block
};

}  // namespace kvt::plugin

#endif
