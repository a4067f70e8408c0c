// Asks a host about itself without a model: for `kvturbo doctor`.
#pragma once

#include "cli_options.h"
#include "host_finder.h"

#include <filesystem>
#include <string>

namespace kvt::cli {

struct HostVersions {
  std::string build;               // "11434"; empty if llama-server --version does not say
  std::string ggml_version;        // "0.26.0"; empty if the host neither says it nor has a shared ggml library to ask
  int backend_api = 0;             // 0: unknown
  bool needs_device_flag = false;  // backends are linked in: GGML_BACKEND_PATH is looked at only with --device KVTURBO0
  std::string problem;             // not empty: llama-server does not run
};

HostVersions probe_host(const Host& host);

struct PluginProbe {
  std::string device;  // "KVTURBO0": it loads; empty: it does not
  std::string why_not;
};

// Lets the host load the plug-in and list its devices.
PluginProbe probe_plugin(const Host& host, const std::filesystem::path& plugin, const CommonOptions& options);

}  // namespace kvt::cli
