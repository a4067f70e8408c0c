// Small helpers for what people read: a status line on stderr, and numbers.
#pragma once

#include <cstdint>
#include <string>

namespace kvt::cli {

// A line that is overwritten by the next one and disappears at the end of the scope. Shown only if stderr is a terminal.
class StatusLine {
 public:
  StatusLine();
  ~StatusLine();
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  bool visible() const { return visible_; }
  void show(const std::string& text);
  void clear();

 private:
  bool visible_;
  bool dirty_ = false;
};

// 23040 -> "23,040"
std::string with_thousands(std::uint64_t number);
// 98362432 -> "98 MB"
std::string megabytes(std::uint64_t bytes);
// 1610612736 -> "1.50 GiB"; below 1 GiB in MiB
std::string gib(std::uint64_t bytes);

}  // namespace kvt::cli
