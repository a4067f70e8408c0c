#include "host_finder.h"

#include "cache_folder.h"
#include "child_process.h"
#include "cli_error.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <optional>
#include <sstream>
#include <system_error>

namespace kvt::cli {

namespace fs = std::filesystem;

namespace {

constexpr const char* kServerName = "llama-server";
constexpr const char* kPluginName = "libggml-kvturbo.so";
constexpr const char* kHowToGetHost = "build the pinned one with scripts/get_host.sh, or give yours with --host DIR";

fs::path own_folder() {
  std::error_code error;
  return fs::read_symlink("/proc/self/exe", error).parent_path();
}

bool is_program(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored) && access(path.c_str(), X_OK) == 0;
}

std::optional<fs::path> server_in(const fs::path& folder) {
  if (folder.filename() == kServerName && is_program(folder)) return folder;
  for (const fs::path& candidate : {folder / kServerName, folder / "bin" / kServerName}) {
    if (is_program(candidate)) return candidate;
  }
  return std::nullopt;
}

std::optional<fs::path> pinned_server() {
  const std::string flags = cpu_flags_line();
  std::optional<fs::path> newest;
  fs::file_time_type newest_time;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(cache_folder() / "hosts", error)) {
    const fs::path stamp = entry.path() / "built.server";
    const std::optional<fs::path> server = server_in(entry.path());
    if (!server || !fs::exists(stamp)) continue;
    std::string built_for = read_file(entry.path() / "cpu_flags");
    while (built_for.ends_with('\n')) built_for.pop_back();
    const fs::file_time_type time = fs::last_write_time(stamp);
    if (built_for == flags && (!newest || time > newest_time)) {
      newest = server;
      newest_time = time;
    }
  }
  return newest;
}

std::optional<fs::path> server_in_path() {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (!folder.empty() && is_program(fs::path(folder) / kServerName)) return fs::path(folder) / kServerName;
  }
  return std::nullopt;
}

}  // namespace

std::string cpu_flags_line() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("flags") || line.starts_with("Features")) return line;
  }
  return "";
}

Host find_host(const CommonOptions& options) {
  if (!options.host_folder.empty()) {
    if (const auto server = server_in(options.host_folder)) return {fs::absolute(*server), "--host"};
    throw CliError(kExitFailure, "host " + options.host_folder, "there is no program llama-server in it", kHowToGetHost);
  }
  if (const auto server = pinned_server()) return {*server, "pinned, from the cache"};
  if (const auto server = server_in_path()) return {*server, "PATH"};
  if (const fs::path server = own_folder() / kPackagedServerName; is_program(server)) return {server, "xllamacpp"};
  throw CliError(kExitFailure, "host",
                 "no llama-server in " + (cache_folder() / "hosts").string() + " (for this CPU) nor in PATH", kHowToGetHost);
}

fs::path find_plugin(const CommonOptions& options) {
  if (!options.plugin_path.empty()) {
    if (fs::exists(options.plugin_path)) return fs::absolute(options.plugin_path);
    throw CliError(kExitFailure, "plug-in " + options.plugin_path, "no such file", "correct --plugin or KVTURBO_PLUGIN");
  }
  const fs::path here = own_folder();
  for (const fs::path& folder : {here, here / ".." / KVTURBO_INSTALL_LIBDIR, here / "../lib"}) {
    if (fs::exists(folder / kPluginName)) return fs::weakly_canonical(folder / kPluginName);
  }
  throw CliError(kExitFailure, "plug-in", std::string("no ") + kPluginName + " beside the program in " + here.string(),
                 "build it (cmake --build build), or give its path with --plugin FILE");
}

}  // namespace kvt::cli
