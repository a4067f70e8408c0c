#include "terminal_output.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace kvt::cli {

StatusLine::StatusLine() : visible_(isatty(STDERR_FILENO) == 1) {}

StatusLine::~StatusLine() { clear(); }

void StatusLine::show(const std::string& text) {
  if (!visible_) return;
  // ESC [K erases what a longer text has left.
  fmt::print(stderr, "\r{}\033[K", text);
  std::fflush(stderr);
  dirty_ = true;
}

void StatusLine::clear() {
  if (!dirty_) return;
  fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
  dirty_ = false;
}

std::string with_thousands(std::uint64_t number) {
  const std::string digits = std::to_string(number);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string megabytes(std::uint64_t bytes) { return fmt::format("{:.0f} MB", static_cast<double>(bytes) / 1e6); }

std::string gib(std::uint64_t bytes) {
  const double mib = static_cast<double>(bytes) / 1048576;
  return mib < 1024 ? fmt::format("{:.1f} MiB", mib) : fmt::format("{:.2f} GiB", mib / 1024);
}

}  // namespace kvt::cli
