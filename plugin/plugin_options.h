// Options, from KVTURBO_* environment variables, since stock hosts take no flags of ours.
#ifndef KVT_PLUGIN_OPTIONS_H
#define KVT_PLUGIN_OPTIONS_H

#include <string>

#include "kvturbo/kvturbo.h"

namespace kvt::plugin {

struct PluginOptions {
  kvt_codec_id codec = KVT_CODEC_K4V3;  // KVTURBO_CODEC
  std::string report_path;              // KVTURBO_REPORT: where the JSON report goes; empty = none
  bool is_conditioned = true;           // KVTURBO_CONDITION=on|off: key mean and scale
  int n_exact = 4;                      // KVTURBO_SINKS: first cells of each stream that are also kept exact, 0..64
  int n_recent = 48;                    // KVTURBO_RECENT: newest tokens that a query attends exactly, 0..64
  bool force_cpu = false;               // KVTURBO_DEVICE=cpu: also where the host has a GPU
  bool is_quiet = false;                // KVTURBO_LOG=quiet: no start-up line when all is compressed
};

// Reads the environment. An unknown variable or value: returns false and *error is one line with the remedy.
bool read_plugin_options(PluginOptions* options, std::string* error);

}  // namespace kvt::plugin

#endif
