// Says what is compressed and what is not: one line for people, and a JSON file for programs (KVTURBO_REPORT).
//
// JSON: codec, isa, kv_bytes_per_token, kv_bytes_per_token_f16, ratio, layers_compressed, layers_total,
// not_compressed: [{layers: "0-3,7", reason}], host_ggml_version, backend_api. The figures are sums over all caches on the
// device. device: CPU, or the GPUs by their names in the host. kv_bytes_fixed: exact rows and conditioning of one stream. score_error: see report_score_error; absent if not measured.
#ifndef KVT_PLUGIN_STARTUP_REPORT_H
#define KVT_PLUGIN_STARTUP_REPORT_H

#include <string>

#include "cache_tensor.h"
#include "plugin_options.h"

namespace kvt::plugin {

// device: what computes, "CPU" or "CUDA0".
void report_configure(const PluginOptions& options, const std::string& device);

// Called before each graph: reports the caches whose layout has been settled since the last call. Cheap if there are none.
void report_layout();
// To be called when a tensor's layout is settled.
void report_layout_changed();

// A cache that the host keeps out of our reach: said once, with the remedy.
void report_not_compressed(const std::string& reason);
// The same for one tensor, where others are on our devices: it becomes part of the line. cache_name: "cache_k_l0".
void report_layer_elsewhere(const char* cache_name, const char* buffer_name);

// What codes do to the scores over a layer's keys, in nats (fit_probe.h). If it is too much, says so once, with the remedy; the JSON
// has the largest.
void report_score_error(const CacheTensor& keys, double error);

// At the end of the process: if a model ran and no cache came to us, says so.
void report_at_exit();

}  // namespace kvt::plugin

#endif
