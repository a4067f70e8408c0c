// The stock programs of the host as the evaluation runs them, one at a time.
#pragma once

#include "cache_report.h"
#include "eval_settings.h"
#include "model_shape.h"
#include "host_finder.h"

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace kvt::cli {

struct EvalModel {
  std::string name;  // of the catalogue, or the file's name
  std::filesystem::path path;
  std::string sha256;
  ModelShape shape;
};

// Fetches a model that the catalogue has and the cache lacks.
EvalModel find_eval_model(const std::string& name_or_path);

// What a cache of that kind costs, with its share of what does not grow (exact rows, conditioning) at 8192 tokens.
struct CacheCost {
  double bytes_per_token = 0;  // all layers; 0: unknown
  double bits = 0;             // per element; 0: unknown
};
CacheCost stock_cost(const EvalModel& model, const KvSetting& setting);
CacheCost our_cost(const CacheReport& report);

struct HostRun {
  std::string output;                 // stdout and stderr
  std::optional<CacheReport> report;  // of ours
};

class EvalHost {
 public:
  EvalHost(const EvalOptions& options, bool needs_plugin);

  // Runs program NAME of the host to its end; on_output gets all that it has printed so far, some times a second. Throws
  // CliError if it fails, or if it was to use our cache and did not.
  HostRun run(const std::string& name, const std::vector<std::string>& arguments, const KvSetting& setting,
              const EvalModel& model, const std::function<void(const std::string&)>& on_output) const;

  // Throws CliError if the host lacks that program.
  std::filesystem::path program(const std::string& name) const;

  // What a result depends on, of host, plug-in and setting.
  nlohmann::json key(const KvSetting& setting) const;

  const Host& host() const { return host_; }
  const std::filesystem::path& plugin() const { return plugin_; }
  const std::string& version() const { return version_; }
  unsigned n_threads() const { return n_threads_; }
  // For --log.
  void append_log(const std::string& text) const;

 private:
  const EvalOptions& options_;
  Host host_;
  std::filesystem::path plugin_;
  std::string version_, plugin_sha256_;
  unsigned n_threads_;
};

// Throws CliError if the plug-in was in the environment and compressed nothing: that would be a stock run under another name.
void check_compressed(const std::optional<CacheReport>& report, const KvSetting& setting, const std::string& output);

}  // namespace kvt::cli
