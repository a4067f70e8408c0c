#include "host_probe.h"

#include "child_process.h"
#include "host_log.h"
#include "host_process.h"

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <regex>
#include <sstream>
#include <system_error>

namespace kvt::cli {

namespace fs = std::filesystem;

namespace {

using namespace std::chrono_literals;

// The shared library that the server loads under that name, from the list that the dynamic linker prints.
fs::path linked_library(const Host& host, const std::string& name) {
  const CommandResult result = run_command({host.server.string(), "--version"}, {{"LD_TRACE_LOADED_OBJECTS", "1"}}, 30s);
  std::istringstream lines(result.output);
  for (std::string line; std::getline(lines, line);) {
    // "\tlibggml-base.so.0 => /folder/libggml-base.so.0 (0x...)"
    const std::size_t start = line.find("=> ");
    if (line.find(name) != std::string::npos && start != std::string::npos) {
      return line.substr(start + 3, line.rfind(" (") - start - 3);
    }
  }
  return {};
}

// The CPU backend as a module beside the program, or one of several for kinds of CPUs: any of them can be asked.
fs::path cpu_backend_module(const Host& host) {
  fs::path found;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(host.server.parent_path(), error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("libggml-cpu") || name.find(".so") == std::string::npos) continue;
    // "libggml-cpu-x64.so" is the one that runs on every CPU.
    if (found.empty() || name == "libggml-cpu.so" || name == "libggml-cpu-x64.so") found = entry.path();
  }
  return found;
}

struct GgmlAnswer {
  char version[64];
  std::int32_t backend_api;
};

// Foreign code runs in a child of its own: whatever it does, doctor goes on.
GgmlAnswer ask_ggml(const fs::path& base_library, const fs::path& cpu_library) {
  GgmlAnswer answer = {};
  int ends[2];
  if (pipe(ends) != 0) return answer;
  const pid_t child = fork();
  if (child == 0) {
    GgmlAnswer found = {};
    if (void* base = dlopen(base_library.c_str(), RTLD_NOW | RTLD_GLOBAL)) {
      if (auto version = reinterpret_cast<const char* (*)()>(dlsym(base, "ggml_version"))) {
        std::snprintf(found.version, sizeof found.version, "%s", version());
      }
    }
    void* cpu = cpu_library.empty() ? nullptr : dlopen(cpu_library.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (auto registry = cpu ? reinterpret_cast<const std::int32_t* (*)()>(dlsym(cpu, "ggml_backend_cpu_reg")) : nullptr) {
      // struct ggml_backend_reg begins with int api_version in all versions.
      if (const std::int32_t* api_version = registry()) found.backend_api = *api_version;
    }
    [[maybe_unused]] const ssize_t written = write(ends[1], &found, sizeof found);
    _exit(0);
  }
  close(ends[1]);
  if (child > 0) {
    if (read(ends[0], &answer, sizeof answer) != static_cast<ssize_t>(sizeof answer)) answer = {};
    waitpid(child, nullptr, 0);
  }
  close(ends[0]);
  return answer;
}

}  // namespace

HostVersions probe_host(const Host& host) {
  HostVersions versions;
  const CommandResult result = run_command({host.server.string(), "--version"}, {{"GGML_BACKEND_PATH", std::nullopt}}, 30s);
  if (!result.succeeded) {
    std::string last_line;
    std::istringstream lines(result.output);
    for (std::string line; std::getline(lines, line);) last_line = line;
    versions.problem = "llama-server --version ended with " + result.how_it_ended + (last_line.empty() ? "" : ": " + last_line);
    return versions;
  }
  // "version: 11434 (abc)" or "version: 0.6.0-dev (build 11434, commit abc)"
  std::smatch match;
  if (std::regex_search(result.output, match, std::regex(R"(build (\d+))")) ||
      std::regex_search(result.output, match, std::regex(R"(version: (\d+) )"))) {
    versions.build = match[1];
  }
  if (host.server.filename() == kPackagedServerName) {
    if (std::regex_search(result.output, match, std::regex(R"(ggml ([0-9.]+))"))) versions.ggml_version = match[1];
    return versions;
  }
  const fs::path base = linked_library(host, "libggml-base.so");
  const fs::path linked_cpu = linked_library(host, "libggml-cpu.so");
  versions.needs_device_flag = base.empty() || !linked_cpu.empty();
  if (base.empty()) return versions;
  const GgmlAnswer answer = ask_ggml(base, linked_cpu.empty() ? cpu_backend_module(host) : linked_cpu);
  versions.ggml_version = answer.version;
  versions.backend_api = answer.backend_api;
  return versions;
}

PluginProbe probe_plugin(const Host& host, const fs::path& plugin, const CommonOptions& options) {
  const CommandResult result =
      run_command({host.server.string(), "--list-devices"}, host_environment(options, plugin, {"--device"}), 60s);
  std::smatch match;
  if (result.succeeded && std::regex_search(result.output, match, std::regex(R"(KVTURBO\d+)"))) return {match.str(), ""};
  if (const auto failure = plugin_load_failure(result.output)) return {"", *failure};
  if (const auto said = last_plugin_line(result.output)) return {"", *said};
  return {"", result.succeeded ? "the host does not list its device"
                               : "llama-server --list-devices ended with " + result.how_it_ended};
}

}  // namespace kvt::cli
