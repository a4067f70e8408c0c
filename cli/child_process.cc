#include "child_process.h"

#include "cache_folder.h"
#include "cli_error.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <thread>

namespace kvt::cli {

namespace {

using namespace std::chrono_literals;

// Read by the signal handler: both are lock-free. The program has at most one child at a time.
std::atomic<pid_t> g_current_child{0};
std::atomic<int> g_received_signal{0};

void on_signal(int signal_number) {
  g_received_signal = signal_number;
  if (const pid_t child = g_current_child; child > 0) kill(child, SIGTERM);
}

[[noreturn]] void become(const std::vector<std::string>& arguments, char** environment, const std::string& output_path,
                         pid_t parent) {
  // If this program is killed without a chance to clean up, the kernel ends the child.
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(127);
  signal(SIGPIPE, SIG_DFL);  // an ignored signal would stay ignored in the child

  const int input = open("/dev/null", O_RDONLY);
  const int output = open(output_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (input < 0 || output < 0) _exit(127);
  dup2(input, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);

  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execvpe(argv[0], argv.data(), environment);
  dprintf(STDERR_FILENO, "cannot start %s: %s\n", argv[0], std::strerror(errno));
  _exit(127);
}

}  // namespace

EnvironmentBlock::EnvironmentBlock(const EnvironmentChanges& changes) {
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    if (!changes.contains(text.substr(0, text.find('=')))) entries_.push_back(text);
  }
  for (const auto& [name, value] : changes) {
    if (value) entries_.push_back(name + "=" + *value);
  }
  for (std::string& entry : entries_) pointers_.push_back(entry.data());
  pointers_.push_back(nullptr);
}

ChildProcess::ChildProcess(const std::vector<std::string>& arguments, const EnvironmentChanges& changes,
                           const std::filesystem::path& output_path) {
  EnvironmentBlock environment(changes);
  const std::string output = output_path.string();
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) throw CliError(kExitFailure, arguments[0], std::string("cannot start it: ") + std::strerror(errno), "");
  if (pid_ == 0) become(arguments, environment.data(), output, parent);
  g_current_child = pid_;
  // A signal that came before g_current_child was set has not reached the child.
  if (received_signal() != 0) kill(pid_, SIGTERM);
}

ChildProcess::~ChildProcess() { stop(); }

bool ChildProcess::running() {
  if (wait_status_) return false;
  int status = 0;
  const pid_t ended = waitpid(pid_, &status, WNOHANG);
  if (ended == 0 || (ended < 0 && errno == EINTR)) return true;
  g_current_child = 0;
  wait_status_ = ended == pid_ ? status : 0;
  return false;
}

bool ChildProcess::wait_for(std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (running()) {
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(5ms);
  }
  return true;
}

void ChildProcess::stop() {
  if (!running()) return;
  kill(pid_, SIGTERM);
  if (wait_for(3s)) return;
  kill(pid_, SIGKILL);
  wait_for(10s);
}

bool ChildProcess::succeeded() const { return wait_status_ && WIFEXITED(*wait_status_) && WEXITSTATUS(*wait_status_) == 0; }

std::string ChildProcess::how_it_ended() const {
  if (!wait_status_) return "still running";
  if (WIFSIGNALED(*wait_status_)) {
    const int number = WTERMSIG(*wait_status_);
    return "signal " + std::to_string(number) + " (" + strsignal(number) + ")";
  }
  return "exit code " + std::to_string(WEXITSTATUS(*wait_status_));
}

CommandResult run_command(const std::vector<std::string>& arguments, const EnvironmentChanges& changes,
                          std::chrono::milliseconds limit) {
  const ScratchFolder scratch(std::filesystem::temp_directory_path());
  const std::filesystem::path output = scratch.path() / "output";
  CommandResult result;
  ChildProcess child(arguments, changes, output);
  if (child.wait_for(limit)) {
    result.succeeded = child.succeeded();
    result.how_it_ended = child.how_it_ended();
  } else {
    child.stop();
    result.how_it_ended = "no answer within " + std::to_string(limit.count() / 1000) + " s";
  }
  result.output = read_file(output);
  return result;
}

void install_signal_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_signal;  // without SA_RESTART: blocking calls return
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGHUP, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

int received_signal() { return g_received_signal; }

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace kvt::cli
