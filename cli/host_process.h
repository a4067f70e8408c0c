// The stock llama-server as a child: its command line, its environment with the plug-in, its start and its failures.
#pragma once

#include "cache_folder.h"
#include "child_process.h"
#include "cli_error.h"
#include "cli_options.h"
#include "host_finder.h"

#include <filesystem>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

namespace kvt::cli {

// Variables for the host. An empty plugin means a stock run: ours is removed from GGML_BACKEND_PATH. The variables that only
// this program reads (KVTURBO_HOST and so on) are taken away. host_flags: the user's, for the host.
EnvironmentChanges host_environment(const CommonOptions& options, const std::filesystem::path& plugin,
                                    const std::vector<std::string>& host_flags);

bool has_flag(const std::vector<std::string>& flags, std::initializer_list<const char*> names);

// A llama-server on a free port of 127.0.0.1, up until the end of the scope.
class HostProcess {
 public:
  // extra_flags follow the ones of this class, so they win.
  HostProcess(const Host& host, const std::filesystem::path& model, const CommonOptions& options,
              const std::filesystem::path& plugin, const std::vector<std::string>& extra_flags);

  // Returns once the model is loaded. Throws CliError with the host's own words if it fails.
  void wait_until_ready();
  // The error for a host that has gone; call it when a request fails.
  CliError failure();
  void stop() { process_->stop(); }

  int port() const { return port_; }
  std::string log() const { return read_file(log_path()); }
  std::filesystem::path log_path() const { return scratch_.path() / "host.log"; }
  std::filesystem::path report_path() const { return scratch_.path() / "report.json"; }

 private:
  void start();

  ScratchFolder scratch_;
  std::vector<std::string> arguments_;  // the port is added at each start
  EnvironmentChanges environment_;
  std::filesystem::path model_;
  int port_ = 0;
  std::unique_ptr<ChildProcess> process_;
};

// True if nothing listens on that port of 127.0.0.1.
bool port_is_free(int port);

}  // namespace kvt::cli
