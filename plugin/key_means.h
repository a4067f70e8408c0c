// The means that are subtracted from keys (docs/algorithm.md 6): one for every kCells cells of a stream and head, as int8 with a unit.
//
// One mean for a whole cache would not last: rotary positions turn it as the text goes on, and a mean learnt at its beginning is worse
// than none at depth 8K. So each run of cells has its own, predicted from the cells of the run before when its first key comes, and
// fixed while cells exist. As it is made from what the cache holds, codes do not depend on how tokens are batched, on drafts that were
// rejected, or on a save and restore in between.
//
// Threads: heads may be worked on at the same time, one head by one thread.
#ifndef KVT_PLUGIN_KEY_MEANS_H
#define KVT_PLUGIN_KEY_MEANS_H

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvt::plugin {

class KeyMeans {
 public:
  static constexpr int64_t kCells = 512;
  // The last cells of a run are left out of predictions: drafts that are not accepted yet may lie there.
  static constexpr int64_t kUnsettledCells = 16;
  static constexpr int64_t kNewestCells = 64;

  // Averages of keys [head_dim] of a run: of all, and of the newest kNewestCells.
  struct RunAverages {
    const float* all;
    const float* newest;
    int64_t n_all, n_newest;
  };

  KeyMeans(int64_t n_streams, int64_t n_heads, int64_t head_dim, int64_t n_cells);

  // Forgets everything.
  void reset();
  // As another copy of them is, of these sizes.
  void load(const int8_t* codes, const float* units);
  // The mean of the first cells of every stream, [n_heads, head_dim].
  void set_first(const float* means);

  // Whether cell lies in a run of cells without a mean. Encoding needs one: predict or settle.
  bool is_new(int64_t stream, int64_t head, int64_t cell) const { return unit_at(stream, head, cell / kCells) < 0; }
  bool is_new(int64_t stream, int64_t cell) const { return is_new(stream, 0, cell); }
  // Sets the mean of cell's run from the run before it, if it has none.
  void predict(int64_t stream, int64_t head, int64_t cell, const RunAverages& before);
  // The mean of cell's run, [head_dim], from a saved state.
  void set_codes(int64_t stream, int64_t head, int64_t cell, const int8_t* codes, float unit);
  // Gives cell's run the mean of the nearest run before it, if it has none.
  void settle(int64_t stream, int64_t head, int64_t cell);

  // mean[i] = unit * codes[i]; zeros for a run of cells without a mean.
  const int8_t* codes(int64_t stream, int64_t head, int64_t cell) const {
    return codes_.data() + at(stream, head, cell / kCells) * head_dim_;
  }
  float unit(int64_t stream, int64_t head, int64_t cell) const {
    const float unit = unit_at(stream, head, cell / kCells);
    return unit < 0 ? 0.0f : unit;
  }

  // All units, [n_streams, n_heads, n_means]; they stay where they are, like codes. Below 0: not set, and the codes are zeros.
  const float* all_units() const { return units_.data(); }
  int64_t n_means() const { return n_means_; }
  const int8_t* all_codes() const { return codes_.data(); }  // [n_streams, n_heads, n_means, head_dim]

  // Takes over the means of cells begin .. end - 1 of another stream, whose codes are copied with them. False, with nothing changed, if
  // a run of cells is not covered and has another mean.
  bool copy(int64_t from_stream, int64_t to_stream, int64_t begin, int64_t end);

  // Bytes for a cell of all heads.
  double cell_bytes() const { return static_cast<double>(n_heads_ * (head_dim_ + 4)) / static_cast<double>(kCells); }

 private:
  int64_t at(int64_t stream, int64_t head, int64_t run) const { return (stream * n_heads_ + head) * n_means_ + run; }
  float unit_at(int64_t stream, int64_t head, int64_t run) const { return units_[static_cast<size_t>(at(stream, head, run))]; }
  void set(int64_t stream, int64_t head, int64_t run, const float* mean);

  int64_t n_streams_, n_heads_, head_dim_, n_means_;
  std::vector<int8_t> codes_;
  std::vector<float> units_;
};

}  // namespace kvt::plugin

#endif
