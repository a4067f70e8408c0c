#include "key_conditioner.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "format/half.h"
#include "format/state_row.h"

namespace kvt::plugin {
namespace {

std::atomic<uint64_t> g_generation{1};

// The first tokens of a sequence are often attention sinks with keys unlike all others: left out when there are others.
constexpr size_t kSkippedRows = 4;
// Estimates from few rows lean towards no conditioning: as if this many rows of average spread, around zero, had been seen.
constexpr double kPriorRows = 4;
constexpr double kPriorMeanRows = 0.5;
// Scales stay within this factor of the head's typical scale, so that no channel can vanish.
constexpr double kLargestScale = 16;

float rounded_to_half(double x) {
  const double largest = static_cast<double>(kHalfMax);
  return half_to_float(float_to_half(static_cast<float>(std::clamp(x, -largest, largest))));
}

}  // namespace

uint64_t KeyConditioner::generation() { return g_generation; }

KeyConditioner::KeyConditioner(int64_t n_heads, int64_t head_dim) : n_heads_(n_heads), head_dim_(head_dim) { reset(); }

void KeyConditioner::reset() {
  const auto n = static_cast<size_t>(n_heads_ * head_dim_);
  is_learning_ = true;
  n_learnt_ = n_stored_ = 0;
  kept_.clear();
  places_.clear();
  query_squares_.assign(n, 0.0);
  n_queries_ = 0;
  mean_.assign(n, 0.0f);
  scale_.assign(n, 1.0f);
  inverse_scale_.assign(n, 1.0f);
  ++g_generation;
}

void KeyConditioner::keep_row(const float* row, int64_t place) {
  kept_.insert(kept_.end(), row, row + n_heads_ * head_dim_);
  places_.push_back(place);
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
  if (!will_learn(0)) return n_stored_;
  estimate(places_.size() > 4 * kSkippedRows ? kSkippedRows : 0);
  n_learnt_ = places_.size();
  return 0;
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
  set_bytes();
  ++g_generation;
}

void KeyConditioner::set_bytes() {
  bytes_.clear();
  bool is_identity = true;
  for (const std::vector<float>* values : {&mean_, &scale_}) {
    for (const float x : *values) {
      const uint16_t half = float_to_half(x);
      bytes_.push_back(static_cast<uint8_t>(half));
      bytes_.push_back(static_cast<uint8_t>(half >> 8));
      is_identity = is_identity && x == (values == &mean_ ? 0.0f : 1.0f);
    }
  }
  digest_ = is_identity ? 0 : conditioning_digest(bytes_.data(), bytes_.size());
}

void KeyConditioner::adopt(const std::vector<uint8_t>& bytes) {
  reset();
  for (size_t i = 0; 2 * i + 1 < bytes.size(); ++i) {
    const float x = half_to_float(static_cast<uint16_t>(bytes[2 * i] | bytes[2 * i + 1] << 8));
    if (i < mean_.size()) {
      mean_[i] = x;
    } else {
      scale_[i - mean_.size()] = x;
      inverse_scale_[i - mean_.size()] = 1 / x;
    }
  }
  freeze();
}

void KeyConditioner::learn_from_rows(const float* rows, size_t n_rows) {
  const auto n = static_cast<size_t>(n_heads_ * head_dim_);
  for (size_t i = 0; i < n_rows; ++i) keep_row(rows + i * n, 0);
  estimate(n_rows > 4 * kSkippedRows ? kSkippedRows : 0);
  freeze();
}

// The score error of channel i is proportional to (error of the key) * (query): with key spread sigma_i and query rms q_i, the sum
// over channels is least for scale_i = sqrt(sigma_i / q_i) (algorithm.md 6).
void KeyConditioner::estimate(size_t first_row) {
  const auto width = static_cast<size_t>(n_heads_ * head_dim_);
  const size_t n_rows = kept_.size() / width - first_row;
  const double n = static_cast<double>(n_rows);
  const auto d = static_cast<size_t>(head_dim_);
  for (size_t head = 0; head < static_cast<size_t>(n_heads_); ++head) {
    std::vector<double> mean(d, 0.0), spread(d, 0.0), query(d, 1.0);
    bool is_finite = true;
    for (size_t row = first_row; row < first_row + n_rows; ++row) {
      const float* key = kept_.data() + row * width + head * d;
      for (size_t i = 0; i < d; ++i) mean[i] += static_cast<double>(key[i]);
    }
    for (double& m : mean) m /= n + kPriorMeanRows;
    double mean_spread = 0;
    for (size_t i = 0; i < d; ++i) {
      for (size_t row = first_row; row < first_row + n_rows; ++row) {
        const double x = static_cast<double>(kept_[row * width + head * d + i]) - mean[i];
        spread[i] += x * x;
      }
      mean_spread += spread[i] / n / static_cast<double>(d);
    }
    double mean_query = 0;
    for (size_t i = 0; i < d; ++i) {
      if (n_queries_ > 0) query[i] = query_squares_[head * d + i] / n_queries_;
      mean_query += query[i] / static_cast<double>(d);
    }
    double log_scale = 0;
    std::vector<double> scale(d, 1.0);
    for (size_t i = 0; i < d; ++i) {
      const double sigma2 = (spread[i] + kPriorRows * mean_spread) / (n + kPriorRows);
      const double q2 = n_queries_ > 0 ? (query[i] * n_queries_ + kPriorRows * mean_query) / (n_queries_ + kPriorRows) : 1.0;
      scale[i] = std::sqrt(std::sqrt(sigma2 / q2));
      log_scale += std::log(scale[i]) / static_cast<double>(d);
      is_finite = is_finite && std::isfinite(scale[i]) && scale[i] > 0 && std::isfinite(mean[i]);
    }
    const double typical = std::exp(log_scale);
    for (size_t i = 0; i < d; ++i) {
      // Keys or queries that are zero or not finite teach nothing.
      const double s = is_finite ? std::clamp(scale[i] / typical, 1 / kLargestScale, kLargestScale) : 1.0;
      mean_[head * d + i] = is_finite ? rounded_to_half(mean[i]) : 0.0f;
      scale_[head * d + i] = rounded_to_half(s);
      inverse_scale_[head * d + i] = 1 / scale_[head * d + i];
    }
  }
}

void KeyConditioner::apply(int64_t head, const float* key, float* conditioned) const {
  const float *mean = mean_.data() + head * head_dim_, *inverse = inverse_scale_.data() + head * head_dim_;
  for (int64_t i = 0; i < head_dim_; ++i) conditioned[i] = (key[i] - mean[i]) * inverse[i];
}

void KeyConditioner::undo(int64_t head, float* key) const {
  const float *mean = mean_.data() + head * head_dim_, *scale = scale_.data() + head * head_dim_;
  for (int64_t i = 0; i < head_dim_; ++i) key[i] = key[i] * scale[i] + mean[i];
}

}  // namespace kvt::plugin
