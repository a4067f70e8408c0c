// Finds the two files of others that every command needs: llama.cpp's llama-server (the host) and our plug-in.
#pragma once

#include "cli_options.h"

#include <filesystem>
#include <string>
#include <vector>

namespace kvt::cli {

struct Host {
  std::filesystem::path server;  // llama-server
  std::string origin;            // "--host", "pinned, from the cache", "PATH", "xllamacpp"
};

// A script of the wheel (python/kvturbo_host): llama-server's flags, served by the package xllamacpp. It loads the plug-in by itself.
inline constexpr const char* kPackagedServerName = "kvturbo-llama-server";

// In this order: --host or KVTURBO_HOST; the pinned llama.cpp in the cache, since it is the one that the tests cover, if it was
// built for this CPU; llama-server in PATH; beside this program the one of the wheel. Throws CliError if there is none.
Host find_host(const CommonOptions& options);

// In this order: --plugin or KVTURBO_PLUGIN; beside this program (a build folder); the library folder of an
// installation. Throws CliError if absent.
std::filesystem::path find_plugin(const CommonOptions& options);

// The lines of /proc/cpuinfo that decide whether a cached host fits this CPU: see cpu_flags in scripts/cache_folder.sh.
std::string cpu_flags_line();

}  // namespace kvt::cli
