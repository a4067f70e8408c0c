// A progress bar for work of known size, with the time that is left. Nothing is shown if stderr is not a terminal.
#pragma once

#include "terminal_output.h"

#include <chrono>
#include <string>

namespace kvt::cli {

class EvalProgress {
 public:
  // Work in any unit: cost grows with it.
  explicit EvalProgress(double total_work) : total_(total_work), begin_(std::chrono::steady_clock::now()) {}

  // A step of that much work begins.
  void begin_step(const std::string& label, double work);
  // done: 0 to 1 of the step.
  void update(double done);
  void end_step();

 private:
  double total_, finished_ = 0, step_ = 0;
  std::string label_;
  std::chrono::steady_clock::time_point begin_;
  StatusLine status_;
};

}  // namespace kvt::cli
