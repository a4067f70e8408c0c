// The one error type of the program: it is thrown anywhere and printed once, in main.
#pragma once

#include <stdexcept>
#include <string>

namespace kvt::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;  // something did not work on this machine, now
inline constexpr int kExitUsage = 2;    // the command line or a variable is wrong

// Printed as "kvturbo: <what>: <why>; <remedy>", on one line.
class CliError : public std::runtime_error {
 public:
  CliError(int exit_code, const std::string& what, const std::string& why, const std::string& remedy)
      : std::runtime_error(what + ": " + why + (remedy.empty() ? "" : "; " + remedy)), exit_code_(exit_code), remedy_(remedy) {}

  int exit_code() const { return exit_code_; }
  const std::string& remedy() const { return remedy_; }

 private:
  int exit_code_;
  std::string remedy_;
};

}  // namespace kvt::cli
