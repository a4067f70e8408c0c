#include "eval_progress.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvt::cli {

namespace {

constexpr int kBarWidth = 24;

std::string time_text(double seconds) {
  if (seconds < 90) return fmt::format("{:.0f} s", seconds);
  if (seconds < 5400) return fmt::format("{:.0f} min", seconds / 60);
  return fmt::format("{:.1f} h", seconds / 3600);
}

}  // namespace

void EvalProgress::begin_step(const std::string& label, double work) {
  label_ = label;
  step_ = work;
  update(0);
}

void EvalProgress::update(double done) {
  const double share = std::clamp((finished_ + step_ * std::clamp(done, 0.0, 1.0)) / std::max(total_, 1e-9), 0.0, 1.0);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  const int filled = static_cast<int>(share * kBarWidth);
  // Before one percent is done an estimate would be a guess.
  const std::string left = share < 0.01 ? "" : ", " + time_text(seconds * (1 - share) / share) + " left";
  status_.show(fmt::format("[{:<{}}] {:3.0f} %{}  {}", std::string(static_cast<std::size_t>(filled), '='), kBarWidth,
                           100 * share, left, label_));
}

void EvalProgress::end_step() {
  finished_ += step_;
  step_ = 0;
  status_.clear();
}

}  // namespace kvt::cli
