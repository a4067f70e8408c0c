#include "eval_host.h"

#include "bench_support.h"
#include "cache_folder.h"
#include "child_process.h"
#include "cli_error.h"
#include "file_hash.h"
#include "host_log.h"
#include "host_probe.h"
#include "host_process.h"
#include "model_catalogue.h"
#include "model_store.h"

#include <fmt/format.h>

#include <fstream>

namespace kvt::cli {

namespace fs = std::filesystem;

using namespace std::chrono_literals;

namespace {

// At which length exact rows and conditioning are shared out: the bars for stored bits are at 8K.
constexpr double kSharedTokens = 8192;

}  // namespace

EvalModel find_eval_model(const std::string& name_or_path) {
  const fs::path path = resolve_model(name_or_path);
  const CatalogueModel* known = find_model(name_or_path);
  return {known ? known->name : path.stem().string(), path, sha256_of(path), read_model_shape(path)};
}

CacheCost stock_cost(const EvalModel& model, const KvSetting& setting) {
  const double bits = stock_bits(setting);
  return {static_cast<double>(model.shape.kv_elements_per_token()) * bits / 8, bits};
}

CacheCost our_cost(const CacheReport& report) {
  const double bytes = report.kv_bytes_per_token + report.kv_bytes_fixed / kSharedTokens;
  return {bytes, report.kv_bytes_per_token_f16 > 0 ? 16 * bytes / report.kv_bytes_per_token_f16 : 0};
}

EvalHost::EvalHost(const EvalOptions& options, bool needs_plugin)
    : options_(options),
      host_(find_host(options.common)),
      plugin_(needs_plugin ? find_plugin(options.common) : fs::path()),
      n_threads_(options.n_threads != 0 ? options.n_threads : usable_cores()) {
  const HostVersions versions = probe_host(host_);
  if (!versions.problem.empty()) throw CliError(kExitFailure, "host " + host_.server.string(), versions.problem, "");
  version_ = versions.build.empty() ? "of unknown build" : "b" + versions.build;
  if (needs_plugin) plugin_sha256_ = sha256_of(plugin_);
}

fs::path EvalHost::program(const std::string& name) const {
  const fs::path path = host_.server.parent_path() / name;
  if (fs::exists(path)) return path;
  throw CliError(kExitFailure, "host " + host_.server.parent_path().string(), "there is no " + name + " in it",
                 "build it with scripts/get_host.sh --tools");
}

nlohmann::json EvalHost::key(const KvSetting& setting) const {
  nlohmann::json key = {{"host", version_}, {"keys", setting.key_type}, {"values", setting.value_type}};
  if (setting.is_ours) {
    key["codec"] = setting.codec;
    key["variables"] = setting.variables;
    key["plugin"] = plugin_sha256_;
    key["isa"] = options_.common.isa;
  }
  return key;
}

void EvalHost::append_log(const std::string& text) const {
  if (options_.log_path.empty()) return;
  std::ofstream file(options_.log_path, std::ios::app);
  file << text;
  if (!file.flush()) {
    throw CliError(kExitFailure, "log " + options_.log_path, "cannot be written", "give another file with --log");
  }
}

HostRun EvalHost::run(const std::string& name, const std::vector<std::string>& arguments, const KvSetting& setting,
                      const EvalModel& model, const std::function<void(const std::string&)>& on_output) const {
  const ScratchFolder scratch(fs::temp_directory_path());
  const fs::path output_path = scratch.path() / "output", report_path = scratch.path() / "report.json";
  EnvironmentChanges environment =
      host_environment(host_options(options_.common, setting), setting.is_ours ? plugin_ : fs::path(), {});
  environment["KVTURBO_REPORT"] = setting.is_ours ? std::optional<std::string>(report_path.string()) : std::nullopt;
  std::vector<std::string> command = {program(name).string(), "-m", model.path.string(), "-t", std::to_string(n_threads_)};
  for (const std::vector<std::string>& more : {host_flags(setting), arguments}) {
    command.insert(command.end(), more.begin(), more.end());
  }

  ChildProcess child(command, environment, output_path);
  while (!child.wait_for(300ms)) on_output(read_file(output_path));
  HostRun run{read_file(output_path), read_cache_report(report_path)};
  append_log(fmt::format("==== {} {}\n{}", name, setting.name, run.output));
  if (received_signal() != 0) throw CliError(kExitFailure, "interrupted", "by a signal", "");
  if (!child.succeeded()) throw explain_host_failure(run.output, model.path, child.how_it_ended());
  if (setting.is_ours) check_compressed(run.report, setting, run.output);
  return run;
}

void check_compressed(const std::optional<CacheReport>& report, const KvSetting& setting, const std::string& output) {
  if (report && report->layers_compressed > 0) return;
  const std::optional<std::string> failure = plugin_load_failure(output);
  const std::optional<std::string> said = failure ? failure : last_plugin_line(output);
  throw CliError(kExitFailure, "plug-in (" + setting.name + ")",
                 said ? *said : "the host did not use it, so nothing was compressed", "see `kvturbo doctor`");
}

}  // namespace kvt::cli
