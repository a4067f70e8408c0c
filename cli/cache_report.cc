#include "cache_report.h"

#include "child_process.h"

#include <nlohmann/json.hpp>

namespace kvt::cli {

namespace {

// Layers come as text ("0-3") or as a list of numbers.
std::string layers_text(const nlohmann::json& layers) { return layers.is_string() ? layers.get<std::string>() : layers.dump(); }

}  // namespace

std::optional<CacheReport> read_cache_report(const std::filesystem::path& path) {
  const nlohmann::json json = nlohmann::json::parse(read_file(path), nullptr, false);
  if (!json.is_object()) return std::nullopt;
  try {
    CacheReport report;
    json.at("codec").get_to(report.codec);
    json.at("kv_bytes_per_token").get_to(report.kv_bytes_per_token);
    json.at("kv_bytes_per_token_f16").get_to(report.kv_bytes_per_token_f16);
    json.at("ratio").get_to(report.ratio);
    report.kv_bytes_fixed = json.value("kv_bytes_fixed", 0.0);
    report.isa = json.value("isa", "");
    report.layers_compressed = json.value("layers_compressed", 0);
    report.layers_total = json.value("layers_total", 0);
    report.host_ggml_version = json.value("host_ggml_version", "");
    report.backend_api = json.value("backend_api", 0);
    for (const nlohmann::json& item : json.value("not_compressed", nlohmann::json::array())) {
      report.not_compressed.push_back({layers_text(item.value("layers", nlohmann::json(""))), item.value("reason", "")});
    }
    return report;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

}  // namespace kvt::cli
