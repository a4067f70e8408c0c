#include "key_conditioner.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>

#include "format/half.h"
#include "kvturbo/kvturbo.h"

namespace kvt::plugin {
namespace {

std::atomic<uint64_t> g_generation{1};

// The first tokens of a sequence are often attention sinks with keys unlike all others: left out when there are others.
constexpr size_t kSkippedRows = 4;
// Estimates from few rows lean towards no conditioning: as if this many rows of average spread, around zero, had been seen.
constexpr double kPriorRows = 4;
constexpr double kPriorMeanRows = 0.5;
// 1/2 is best for channels whose spread never changes. Rotary positions turn channels into one another, and what the first keys show is
// only roughly true at depth.
constexpr double kScaleExponent = 3.0 / 8;
// Scales stay within this factor of the head's typical scale, so that no channel can vanish.
constexpr double kLargestScale = 16;

}  // namespace

uint64_t KeyConditioner::generation() { return g_generation; }

KeyConditioner::KeyConditioner(int64_t n_streams, int64_t n_heads, int64_t head_dim, int64_t n_cells)
    : n_heads_(n_heads), head_dim_(head_dim), n_cells_(n_cells), means_(n_streams, n_heads, head_dim, n_cells) {
  reset();
}

void KeyConditioner::reset() {
  const auto n = static_cast<size_t>(n_heads_ * head_dim_);
  is_learning_ = true;
  n_learnt_ = n_stored_ = 0;
  kept_.clear();
  places_.clear();
  query_squares_.assign(n, 0.0);
  n_queries_ = 0;
  means_.reset();
  scale_.assign(n, 1.0f);
  ++g_generation;
}

void KeyConditioner::keep_row(const float* row, int64_t place) {
  places_.push_back(place);
  try {
    kept_.insert(kept_.end(), row, row + n_heads_ * head_dim_);
  } catch (...) {
    places_.pop_back();
    throw;
  }
}

bool KeyConditioner::replace_row(const float* row, int64_t place) {
  bool is_kept = false;
  for (size_t i = 0; i < places_.size(); ++i) {
    if (places_[i] != place) continue;
    std::copy_n(row, n_heads_ * head_dim_, kept_.begin() + static_cast<ptrdiff_t>(i) * n_heads_ * head_dim_);
    is_kept = true;
  }
  return is_kept;
}

void KeyConditioner::add_query(int64_t head, const float* query) {
  double* squares = query_squares_.data() + head * head_dim_;
  for (int64_t i = 0; i < head_dim_; ++i) squares[i] += static_cast<double>(query[i]) * static_cast<double>(query[i]);
  if (head == 0) n_queries_ += 1;
}

// Few tokens are better conditioned roughly than not at all.
bool KeyConditioner::will_learn(size_t n_new) const {
  const size_t n = places_.size() + n_new;
  return is_learning_ && n > n_learnt_ && (n >= 2 * n_learnt_ || n >= kEnoughRows);
}

size_t KeyConditioner::learn() {
  size_t first_to_store = n_stored_;
  if (will_learn(0)) {
    estimate(kept_.data(), places_.size());
    n_learnt_ = places_.size();
    first_to_store = 0;
  }
  for (size_t i = first_to_store; i < places_.size(); ++i) {
    for (int64_t head = 0; head < n_heads_; ++head) means_.settle(places_[i] / n_cells_, head, places_[i] % n_cells_);
  }
  return first_to_store;
}

void KeyConditioner::finish_pass() {
  set_stored();
  if (n_learnt_ >= kEnoughRows) freeze();
}

void KeyConditioner::freeze() {
  if (!is_learning_) return;
  is_learning_ = false;
  std::vector<float>().swap(kept_);
  std::vector<int64_t>().swap(places_);
  ++g_generation;
}

void KeyConditioner::learn_from_rows(const float* rows, size_t n_rows) {
  estimate(rows, n_rows);
  freeze();
}

// The score error of channel i is proportional to (error of the key) * (query): with key spread sigma_i and query rms q_i, the sum
// over channels is least for scale_i = (sigma_i / q_i)^(1/2) (algorithm.md 6).
void KeyConditioner::estimate(const float* rows, size_t n_all) {
  const auto width = static_cast<size_t>(n_heads_ * head_dim_);
  const size_t first_row = n_all > 4 * kSkippedRows ? kSkippedRows : 0;
  // Later keys have means of their own.
  const size_t n_rows = std::min(n_all, static_cast<size_t>(KeyMeans::kCells)) - first_row;
  std::vector<float> means(width);
  const double n = static_cast<double>(n_rows);
  const auto d = static_cast<size_t>(head_dim_);
  // All memory that it takes, first: stored keys go with the vectors as they are, so these change as a whole or not at all.
  std::vector<double> mean(d), spread(d), query(d), scale(d);
  for (size_t head = 0; head < static_cast<size_t>(n_heads_); ++head) {
    mean.assign(d, 0.0);
    spread.assign(d, 0.0);
    query.assign(d, 1.0);
    bool is_finite = true;
    for (size_t row = first_row; row < first_row + n_rows; ++row) {
      const float* key = rows + row * width + head * d;
      for (size_t i = 0; i < d; ++i) mean[i] += static_cast<double>(key[i]);
    }
    for (double& m : mean) m /= n + kPriorMeanRows;
    for (size_t row = first_row; row < first_row + n_rows; ++row) {
      const float* key = rows + row * width + head * d;
      for (size_t i = 0; i < d; ++i) {
        const double x = static_cast<double>(key[i]) - mean[i];
        spread[i] += x * x;
      }
    }
    double mean_spread = 0;
    for (size_t i = 0; i < d; ++i) mean_spread += spread[i] / n / static_cast<double>(d);
    double mean_query = 0;
    for (size_t i = 0; i < d; ++i) {
      if (n_queries_ > 0) query[i] = query_squares_[head * d + i] / n_queries_;
      mean_query += query[i] / static_cast<double>(d);
    }
    double log_scale = 0;
    for (size_t i = 0; i < d; ++i) {
      const double sigma2 = (spread[i] + kPriorRows * mean_spread) / (n + kPriorRows);
      const double q2 = n_queries_ > 0 ? (query[i] * n_queries_ + kPriorRows * mean_query) / (n_queries_ + kPriorRows) : 1.0;
      scale[i] = std::pow(sigma2 / q2, kScaleExponent / 2);
      log_scale += std::log(scale[i]) / static_cast<double>(d);
      is_finite = is_finite && std::isfinite(scale[i]) && scale[i] > 0 && std::isfinite(mean[i]);
    }
    const double typical = std::exp(log_scale);
    for (size_t i = 0; i < d; ++i) {
      // Keys or queries that are zero or not finite teach nothing.
      const double s = is_finite ? std::clamp(scale[i] / typical, 1 / kLargestScale, kLargestScale) : 1.0;
      means[head * d + i] = is_finite ? static_cast<float>(mean[i]) : 0.0f;
      scale_[head * d + i] = half_to_float(float_to_half(static_cast<float>(s)));  // so that a state holds it exactly
    }
  }
  means_.reset();
  means_.set_first(means.data());
}

std::vector<uint8_t> KeyConditioner::bytes_of(int64_t stream, int64_t cell) const {
  std::vector<uint8_t> bytes;
  const auto put = [&](uint32_t value, int n_bytes) {
    for (int i = 0; i < n_bytes; ++i) bytes.push_back(static_cast<uint8_t>(value >> 8 * i));
  };
  for (int64_t head = 0; head < n_heads_; ++head) {
    const int8_t* mean = means_.codes(stream, head, cell);
    for (int64_t i = 0; i < head_dim_; ++i) put(static_cast<uint8_t>(mean[i]), 1);
  }
  for (int64_t head = 0; head < n_heads_; ++head) put(std::bit_cast<uint32_t>(means_.unit(stream, head, cell)), 4);
  for (const float scale : scale_) put(float_to_half(scale), 2);
  return bytes;
}

void KeyConditioner::adopt_scale(const std::vector<uint8_t>& bytes) {
  reset();
  const size_t begin = scale_.size() + 4 * static_cast<size_t>(n_heads_);
  for (size_t i = 0; i < scale_.size() && !bytes.empty(); ++i) {
    scale_[i] = half_to_float(static_cast<uint16_t>(bytes[begin + 2 * i] | bytes[begin + 2 * i + 1] << 8));
  }
  freeze();
}

bool KeyConditioner::adopt_mean(int64_t stream, int64_t cell, const std::vector<uint8_t>& bytes) {
  const std::vector<uint8_t> present = bytes_of(stream, cell);
  const size_t begin = scale_.size() + 4 * static_cast<size_t>(n_heads_);
  if (!std::equal(present.begin() + static_cast<ptrdiff_t>(begin), present.end(), bytes.begin() + static_cast<ptrdiff_t>(begin))) return false;
  for (int64_t head = 0; head < n_heads_; ++head) {
    uint32_t unit = 0;
    for (size_t i = 0; i < 4; ++i) unit |= uint32_t{bytes[scale_.size() + 4 * static_cast<size_t>(head) + i]} << 8 * i;
    means_.set_codes(stream, head, cell, reinterpret_cast<const int8_t*>(bytes.data()) + head * head_dim_, std::bit_cast<float>(unit));
  }
  return true;
}

void KeyConditioner::apply(int64_t stream, int64_t head, const int64_t* cells, size_t n, float* keys) const {
  const float* scale = scale_.data() + head * head_dim_;
  float inverse[KVT_MAX_HEAD_DIM];
  for (int64_t i = 0; i < head_dim_; ++i) inverse[i] = 1 / scale[i];
  for (size_t row = 0; row < n; ++row, keys += head_dim_) {
    const int8_t* mean = means_.codes(stream, head, cells[row]);
    const float unit = means_.unit(stream, head, cells[row]);
    for (int64_t i = 0; i < head_dim_; ++i) keys[i] = (keys[i] - unit * static_cast<float>(mean[i])) * inverse[i];
  }
}

void KeyConditioner::undo(int64_t stream, int64_t head, int64_t cell, float* key) const {
  const float *scale = scale_.data() + head * head_dim_, unit = means_.unit(stream, head, cell);
  const int8_t* mean = means_.codes(stream, head, cell);
  for (int64_t i = 0; i < head_dim_; ++i) key[i] = key[i] * scale[i] + unit * static_cast<float>(mean[i]);
}

}  // namespace kvt::plugin
