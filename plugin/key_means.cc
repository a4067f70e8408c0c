#include "key_means.h"

#include <algorithm>
#include <cmath>

#include "kvturbo/kvturbo.h"

namespace kvt::plugin {

KeyMeans::KeyMeans(int64_t n_streams, int64_t n_heads, int64_t head_dim, int64_t n_cells)
    : n_streams_(n_streams),
      n_heads_(n_heads),
      head_dim_(head_dim),
      n_means_((n_cells + kCells - 1) / kCells),
      codes_(static_cast<size_t>(n_streams * n_heads * n_means_ * head_dim), 0),
      units_(static_cast<size_t>(n_streams * n_heads * n_means_), -1.0f) {}

void KeyMeans::reset() {
  std::fill(codes_.begin(), codes_.end(), int8_t{0});
  std::fill(units_.begin(), units_.end(), -1.0f);
}

void KeyMeans::load(const int8_t* codes, const float* units) {
  std::copy_n(codes, codes_.size(), codes_.begin());
  std::copy_n(units, units_.size(), units_.begin());
}

void KeyMeans::set_first(const float* means) {
  for (int64_t stream = 0; stream < n_streams_; ++stream) {
    for (int64_t head = 0; head < n_heads_; ++head) set(stream, head, 0, means + head * head_dim_);
  }
}

void KeyMeans::set(int64_t stream, int64_t head, int64_t run, const float* mean) {
  float largest = 0;
  for (int64_t i = 0; i < head_dim_; ++i) {
    if (!std::isfinite(mean[i])) largest = INFINITY;
    largest = std::max(largest, std::fabs(mean[i]));
  }
  // Keys that are not finite teach nothing.
  const float unit = std::isfinite(largest) ? largest / 127 : 0.0f, inverse = unit > 0 ? 1 / unit : 0.0f;
  int8_t* codes = codes_.data() + at(stream, head, run) * head_dim_;
  for (int64_t i = 0; i < head_dim_; ++i) codes[i] = inverse > 0 ? static_cast<int8_t>(std::nearbyint(mean[i] * inverse)) : int8_t{0};
  units_[static_cast<size_t>(at(stream, head, run))] = unit;
}

// The newest keys' mean is nearest to what comes, but a channel that has turned away from the run's mean by then will go on turning: it
// counts as far as the two agree.
void KeyMeans::predict(int64_t stream, int64_t head, int64_t cell, const RunAverages& before) {
  if (!is_new(stream, head, cell)) return;
  if (before.n_all < kNewestCells) return settle(stream, head, cell);
  const float* newest_keys = 2 * before.n_newest >= kNewestCells ? before.newest : before.all;
  float mean[KVT_MAX_HEAD_DIM];
  for (int64_t i = 0; i < head_dim_; ++i) {
    const float all = before.all[i], newest = newest_keys[i], larger = std::max(all * all, newest * newest);
    mean[i] = larger > 0 ? std::max(0.0f, all * newest / larger) * newest : 0.0f;
    if (!std::isfinite(all) || !std::isfinite(newest)) mean[i] = NAN;
  }
  set(stream, head, cell / kCells, mean);
}

void KeyMeans::set_codes(int64_t stream, int64_t head, int64_t cell, const int8_t* codes, float unit) {
  std::copy_n(codes, head_dim_, codes_.data() + at(stream, head, cell / kCells) * head_dim_);
  units_[static_cast<size_t>(at(stream, head, cell / kCells))] = std::isfinite(unit) && unit > 0 ? unit : 0.0f;
}

void KeyMeans::settle(int64_t stream, int64_t head, int64_t cell) {
  if (!is_new(stream, head, cell)) return;
  const int64_t run = cell / kCells;
  int64_t from = run - 1;
  while (from >= 0 && unit_at(stream, head, from) < 0) --from;
  if (from >= 0) {
    std::copy_n(codes_.data() + at(stream, head, from) * head_dim_, head_dim_, codes_.data() + at(stream, head, run) * head_dim_);
  }
  units_[static_cast<size_t>(at(stream, head, run))] = from >= 0 ? unit_at(stream, head, from) : 0.0f;
}

bool KeyMeans::copy(int64_t from_stream, int64_t to_stream, int64_t begin, int64_t end) {
  const int64_t first_run = begin / kCells, end_run = (end + kCells - 1) / kCells;
  const auto is_covered = [&](int64_t run) { return run * kCells >= begin && ((run + 1) * kCells <= end || run + 1 == n_means_); };
  const auto is_equal = [&](int64_t head, int64_t run) {
    const int8_t *a = codes_.data() + at(from_stream, head, run) * head_dim_, *b = codes_.data() + at(to_stream, head, run) * head_dim_;
    return unit_at(from_stream, head, run) == unit_at(to_stream, head, run) && std::equal(a, a + head_dim_, b);
  };
  for (int64_t head = 0; head < n_heads_; ++head) {
    for (int64_t run = first_run; run < end_run; ++run) {
      if (!is_covered(run) && unit_at(to_stream, head, run) >= 0 && !is_equal(head, run)) return false;
    }
  }
  for (int64_t head = 0; head < n_heads_; ++head) {
    std::copy_n(codes_.data() + at(from_stream, head, first_run) * head_dim_, (end_run - first_run) * head_dim_,
                codes_.data() + at(to_stream, head, first_run) * head_dim_);
    std::copy_n(units_.data() + at(from_stream, head, first_run), end_run - first_run, units_.data() + at(to_stream, head, first_run));
  }
  return true;
}

}  // namespace kvt::plugin
