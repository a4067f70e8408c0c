#include "host_process.h"

#include "host_log.h"

#include <arpa/inet.h>
#include <httplib.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

namespace kvt::cli {

namespace fs = std::filesystem;

namespace {

using namespace std::chrono_literals;

constexpr const char* kDeviceVariable = "LLAMA_ARG_DEVICE";

// Binds a socket to that port (0: any) and returns the port, or 0 if it is taken.
int try_port(int port) {
  const int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket_fd < 0) return 0;
  const int yes = 1;
  setsockopt(socket_fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);  // as servers do: a port in TIME_WAIT is free
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  int bound = 0;
  socklen_t size = sizeof address;
  if (bind(socket_fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
      getsockname(socket_fd, reinterpret_cast<sockaddr*>(&address), &size) == 0) {
    bound = ntohs(address.sin_port);
  }
  close(socket_fd);
  return bound;
}

}  // namespace

bool port_is_free(int port) { return try_port(port) != 0; }

bool has_flag(const std::vector<std::string>& flags, std::initializer_list<const char*> names) {
  return std::any_of(flags.begin(), flags.end(), [&](const std::string& flag) {
    return std::any_of(names.begin(), names.end(), [&](const char* name) { return flag == name; });
  });
}

EnvironmentChanges host_environment(const CommonOptions& options, const fs::path& plugin,
                                    const std::vector<std::string>& host_flags) {
  EnvironmentChanges changes;
  for (const char* ours : {"KVTURBO_HOST", "KVTURBO_PLUGIN", "KVTURBO_CACHE", "KVTURBO_MODEL"}) changes[ours] = std::nullopt;
  for (const auto& [name, value] : options.variables) changes[name] = value;
  if (plugin.empty()) {
    const char* backend = std::getenv("GGML_BACKEND_PATH");
    if (backend && std::string(backend).find("kvturbo") != std::string::npos) changes["GGML_BACKEND_PATH"] = std::nullopt;
    return changes;
  }
  changes["GGML_BACKEND_PATH"] = plugin.string();
  if (!options.codec.empty()) changes["KVTURBO_CODEC"] = options.codec;
  if (!options.condition.empty()) changes["KVTURBO_CONDITION"] = options.condition;
  if (!options.sinks.empty()) changes["KVTURBO_SINKS"] = options.sinks;
  if (!options.recent.empty()) changes["KVTURBO_RECENT"] = options.recent;
  if (!options.isa.empty()) changes["KVTURBO_ISA"] = options.isa;
  // A llama.cpp built without GGML_BACKEND_DL looks at GGML_BACKEND_PATH only when a device is named.
  if (!has_flag(host_flags, {"--device", "-dev"}) && !std::getenv(kDeviceVariable)) changes[kDeviceVariable] = "KVTURBO0";
  return changes;
}

HostProcess::HostProcess(const Host& host, const fs::path& model, const CommonOptions& options, const fs::path& plugin,
                         const std::vector<std::string>& extra_flags)
    : scratch_(fs::temp_directory_path()),
      arguments_({host.server.string(), "-m", model.string(), "--host", "127.0.0.1"}),
      environment_(host_environment(options, plugin, extra_flags)),
      model_(model) {
  if (!plugin.empty()) environment_["KVTURBO_REPORT"] = report_path().string();
  arguments_.insert(arguments_.end(), extra_flags.begin(), extra_flags.end());
  start();
}

void HostProcess::start() {
  port_ = try_port(0);
  if (port_ == 0) throw CliError(kExitFailure, "port", "no free port on 127.0.0.1", "");
  std::vector<std::string> arguments = arguments_;
  arguments.push_back("--port");
  arguments.push_back(std::to_string(port_));
  process_.reset();
  std::error_code ignored;
  fs::remove(log_path(), ignored);
  process_ = std::make_unique<ChildProcess>(arguments, environment_, log_path());
}

void HostProcess::wait_until_ready() {
  int starts_left = 3;
  for (;;) {
    if (received_signal() != 0) throw CliError(kExitFailure, "interrupted", "while the model was loading", "");
    if (!process_->running()) {
      // Between our look for a free port and the host's bind, another program may have taken it.
      if (is_port_conflict(log()) && --starts_left > 0) {
        start();
        continue;
      }
      throw failure();
    }
    httplib::Client client("127.0.0.1", port_);
    const httplib::Result answer = client.Get("/health");
    if (answer && answer->status == 200) return;
    std::this_thread::sleep_for(20ms);
  }
}

CliError HostProcess::failure() {
  process_->wait_for(2s);
  return explain_host_failure(log(), model_, process_->how_it_ended());
}

}  // namespace kvt::cli
