// One child process: start, wait, stop. Children die with this program, whatever ends it.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace kvt::cli {

// Changes to the environment of a child: a value sets the variable, nullopt removes it.
using EnvironmentChanges = std::map<std::string, std::optional<std::string>>;

// An environment block for exec: this process's variables with the changes applied.
class EnvironmentBlock {
 public:
  explicit EnvironmentBlock(const EnvironmentChanges& changes);
  char** data() { return pointers_.data(); }

 private:
  std::vector<std::string> entries_;
  std::vector<char*> pointers_;
};

class ChildProcess {
 public:
  // Starts arguments[0], which is a path or is looked up in PATH. stdout and stderr go to the file output_path, stdin is empty.
  ChildProcess(const std::vector<std::string>& arguments, const EnvironmentChanges& changes,
               const std::filesystem::path& output_path);
  ~ChildProcess();  // stops it
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  bool running();
  // SIGTERM, and SIGKILL after a grace period. Does nothing if it has ended.
  void stop();
  // Waits at most that long; false if it still runs.
  bool wait_for(std::chrono::milliseconds limit);
  // "exit code 1" or "signal 6 (Aborted)"; only after the end.
  std::string how_it_ended() const;
  bool succeeded() const;

 private:
  pid_t pid_ = -1;
  std::optional<int> wait_status_;
};

struct CommandResult {
  bool succeeded = false;
  std::string how_it_ended;
  std::string output;  // stdout and stderr, as they came
};

// Runs a command to its end, or stops it after the limit.
CommandResult run_command(const std::vector<std::string>& arguments, const EnvironmentChanges& changes,
                          std::chrono::milliseconds limit);

// SIGINT and SIGTERM stop the child that runs, so that this program leaves by its ordinary way. Call once, first in main.
void install_signal_handlers();
// The signal that arrived, or 0.
int received_signal();

std::string read_file(const std::filesystem::path& path);  // empty if it cannot be read

}  // namespace kvt::cli
