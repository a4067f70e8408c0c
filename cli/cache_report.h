// What the plug-in says about a cache that it made: it writes a JSON file at the path in KVTURBO_REPORT.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace kvt::cli {

struct NotCompressed {
  std::string layers;
  std::string reason;
};

struct CacheReport {
  std::string codec;
  std::string isa;
  double kv_bytes_per_token = 0;  // summed over the layers
  double kv_bytes_per_token_f16 = 0;
  double ratio = 0;
  double kv_bytes_fixed = 0;  // exact rows and conditioning of one sequence, summed over the layers
  int layers_compressed = 0;
  int layers_total = 0;
  std::vector<NotCompressed> not_compressed;
  std::string host_ggml_version;
  int backend_api = 0;
};

// nullopt if there is no file, or it is not what the plug-in writes.
std::optional<CacheReport> read_cache_report(const std::filesystem::path& path);

}  // namespace kvt::cli
