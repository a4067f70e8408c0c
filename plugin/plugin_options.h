// Options, from KVTURBO_* environment variables, since stock hosts take no flags of ours.
#ifndef KVT_PLUGIN_OPTIONS_H
#define KVT_PLUGIN_OPTIONS_H

#include <string>

#include "codec_store.h"

namespace kvt::plugin {

struct PluginOptions {
  CacheOptions cache;         // KVTURBO_CODEC, _LAYERS, _CONDITION, _SINKS, _RECENT
  std::string report_path;    // KVTURBO_REPORT: where the JSON report goes; empty = none
  std::string metrics_path;   // KVTURBO_METRICS: where the counters go; empty = nowhere
  bool force_cpu = false;     // KVTURBO_DEVICE=cpu: also where the host has a GPU
  bool is_quiet = false;      // KVTURBO_LOG=quiet: no start-up line when all is compressed
};

// Reads the environment. An unknown variable or value: returns false and *error is one line with the remedy.
bool read_plugin_options(PluginOptions* options, std::string* error);

}  // namespace kvt::plugin

#endif
