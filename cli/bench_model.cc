#include "bench_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <tuple>

#include "bench_support.h"
#include "cache_folder.h"
#include "cache_report.h"
#include "child_process.h"
#include "cli_error.h"
#include "eval_settings.h"
#include "host_finder.h"
#include "host_log.h"
#include "host_process.h"
#include "kvturbo/kvturbo.h"
#include "model_catalogue.h"
#include "model_shape.h"
#include "model_store.h"
#include "terminal_output.h"

namespace kvt::cli {

namespace fs = std::filesystem;

namespace {

using namespace std::chrono_literals;

struct Contender {
  std::string name;
  std::string stock_type;  // empty: ours
  std::string codec;       // empty: stock
};

class ModelBench {
 public:
  explicit ModelBench(const ModelBenchOptions& options) : options_(options), scratch_(fs::temp_directory_path()) {
    for (const std::string& type : options_.stock_types) contenders_.push_back({"stock " + type, type, ""});
    if (!options_.stock_only) add_codecs();
    check_model(options_.model);
    const Host host = find_host(options_.common);
    bench_program_ = host.server.parent_path() / "llama-bench";
    if (!fs::exists(bench_program_)) {
      throw CliError(kExitFailure, "host " + host.server.parent_path().string(), "there is no llama-bench in it",
                     "build it with scripts/get_host.sh --tools");
    }
    if (!options_.stock_only) plugin_ = find_plugin(options_.common);
    model_ = resolve_model(options_.model);
    const ModelShape shape = read_model_shape(model_);
    n_elements_ = static_cast<double>(shape.kv_elements_per_token());
    result_.model_name = find_model(options_.model) != nullptr ? options_.model : model_.stem().string();
    result_.kv_bytes_per_token_f16 = 2 * n_elements_;
    result_.active_weight_bytes = static_cast<double>(shape.active_weight_bytes);
    depths_ = !options_.depths.empty() ? options_.depths
              : options_.quick         ? std::vector<unsigned>{0, 2048}
                                       : std::vector<unsigned>{0, 2048, 8192};
    result_.n_threads = options_.n_threads != 0 ? options_.n_threads : usable_cores();
    result_.n_rounds = options_.n_rounds != 0 ? options_.n_rounds : options_.quick ? 1 : 3;
  }

  ModelBenchResult run() {
    for (unsigned round = 0; round < result_.n_rounds; ++round) {
      // Each round begins with another contender: the machine's mood does not favour one of them.
      for (std::size_t i = 0; i < contenders_.size(); ++i) {
        const Contender& contender = contenders_[(i + round) % contenders_.size()];
        status_.show(fmt::format("round {} of {}: {}", round + 1, result_.n_rounds, contender.name));
        run_contender(contender);
      }
    }
    status_.clear();
    collect_rows();
    return std::move(result_);
  }

 private:
  using Key = std::tuple<std::string, std::string, unsigned>;  // contender, test, depth

  void add_codecs() {
    for (const std::string& codec : options_.codecs) {
      check_codec_name(codec);
      contenders_.push_back({codec, "", codec});
    }
  }

  std::vector<std::string> arguments(const Contender& contender) const {
    std::string depths;
    for (const unsigned depth : depths_) depths += (depths.empty() ? "" : ",") + std::to_string(depth);
    const std::string type = contender.stock_type.empty() ? "f16" : contender.stock_type;
    return {bench_program_.string(),
            "-m",
            model_.string(),
            "-p",
            std::to_string(options_.n_prompt),
            "-n",
            std::to_string(options_.n_gen),
            "-d",
            depths,
            "-r",
            "1",
            "-t",
            std::to_string(result_.n_threads),
            "-fa",
            "1",
            "-ctk",
            type,
            "-ctv",
            type,
            "-o",
            "jsonl"};
  }

  void run_contender(const Contender& contender) {
    const bool ours = !contender.codec.empty();
    CommonOptions common = options_.common;
    common.codec = contender.codec;
    const fs::path report_path = scratch_.path() / "report.json";
    fs::remove(report_path);
    EnvironmentChanges environment = host_environment(common, ours ? plugin_ : fs::path(), {});
    environment["KVTURBO_REPORT"] = ours ? std::optional<std::string>(report_path.string()) : std::nullopt;
    const CommandResult run = run_command(arguments(contender), environment, 24h);
    if (received_signal() != 0) throw CliError(kExitFailure, "interrupted", "by a signal", "");
    if (!run.succeeded) {
      throw CliError(kExitFailure, "llama-bench (" + contender.name + ")",
                     "it ended with " + run.how_it_ended + ": " + last_words(run.output), "");
    }
    if (ours) check_report(contender, report_path, run.output);
    if (read_results(contender, run.output) == 0) {
      throw CliError(kExitFailure, "llama-bench (" + contender.name + ")", "it printed no result: " + last_words(run.output),
                     "");
    }
  }

  static std::string last_words(const std::string& output) {
    std::string last = "no output";
    std::istringstream lines(output);
    for (std::string line; std::getline(lines, line);) {
      if (line.find_first_not_of(" \t\r") != std::string::npos) last = line;
    }
    return last;
  }

  // A run in which nothing was compressed is a stock run under another name.
  void check_report(const Contender& contender, const fs::path& report_path, const std::string& output) {
    const std::optional<CacheReport> report = read_cache_report(report_path);
    if (!report || report->layers_compressed == 0) {
      const std::optional<std::string> said =
          plugin_load_failure(output) ? plugin_load_failure(output) : last_plugin_line(output);
      throw CliError(kExitFailure, "plug-in (" + contender.name + ")",
                     said ? *said : "the host did not use it, so nothing was compressed", "see `kvturbo doctor`");
    }
    result_.isa = report->isa;
    our_bytes_[contender.name] = {report->kv_bytes_per_token, report->kv_bytes_fixed};
    const std::string warning =
        fmt::format("{}: {} of {} layers were compressed", contender.name, report->layers_compressed, report->layers_total);
    if (report->layers_compressed < report->layers_total &&
        std::find(result_.warnings.begin(), result_.warnings.end(), warning) == result_.warnings.end()) {
      result_.warnings.push_back(warning);
    }
  }

  // One JSON object a line, between whatever else is printed. Returns the number of results.
  std::size_t read_results(const Contender& contender, const std::string& output) {
    std::size_t n_results = 0;
    std::istringstream lines(output);
    for (std::string line; std::getline(lines, line);) {
      const nlohmann::json object = line.starts_with('{') ? nlohmann::json::parse(line, nullptr, false) : nlohmann::json();
      if (!object.is_object() || !object.contains("avg_ts")) continue;
      const unsigned n_prompt = object.value("n_prompt", 0u), n_gen = object.value("n_gen", 0u);
      const std::string test = n_prompt > 0 ? "pp" + std::to_string(n_prompt) : "tg" + std::to_string(n_gen);
      speeds_[{contender.name, test, object.value("n_depth", 0u)}].push_back(object.value("avg_ts", 0.0));
      result_.model_type = object.value("model_type", "");
      result_.host_build = std::to_string(object.value("build_number", 0));
      ++n_results;
    }
    return n_results;
  }

  void collect_rows() {
    std::vector<std::string> tests;
    if (options_.n_gen > 0) tests.push_back("tg" + std::to_string(options_.n_gen));
    if (options_.n_prompt > 0) tests.push_back("pp" + std::to_string(options_.n_prompt));
    for (const std::string& test : tests) {
      for (const unsigned depth : depths_) {
        const auto stock = speeds_.find({"stock f16", test, depth});
        for (const Contender& contender : contenders_) {
          const auto found = speeds_.find({contender.name, test, depth});
          if (found == speeds_.end()) continue;
          ModelRow row{contender.name, test, depth, median(found->second), relative_spread(found->second), std::nullopt, 0, 0};
          if (stock != speeds_.end()) row.ratio_stock_f16 = row.tokens_per_second / median(stock->second);
          if (contender.codec.empty()) {
            row.kv_bytes_per_token = n_elements_ * stock_type_bits(contender.stock_type) / 8;
          } else {
            std::tie(row.kv_bytes_per_token, row.kv_bytes_fixed) = our_bytes_[contender.name];
          }
          result_.rows.push_back(row);
        }
      }
    }
  }

  const ModelBenchOptions& options_;
  const ScratchFolder scratch_;
  std::vector<Contender> contenders_;
  std::vector<unsigned> depths_;
  fs::path bench_program_, plugin_, model_;
  std::map<Key, std::vector<double>> speeds_;
  double n_elements_ = 0;                                        // of keys and values of a token
  std::map<std::string, std::pair<double, double>> our_bytes_;  // of a token, and fixed, as the plug-in says
  StatusLine status_;
  ModelBenchResult result_;
};

}  // namespace

ModelBenchResult bench_model(const ModelBenchOptions& options) { return ModelBench(options).run(); }

std::string model_markdown(const ModelBenchResult& result) {
  std::string text = fmt::format("kvturbo {} bench model\n\n", kvt_version());
  text += fmt::format("{}, {} threads; {}; llama.cpp build {}{}; medians of {} {}\n\n", cpu_model_name(), result.n_threads,
                      result.model_type, result.host_build, result.isa.empty() ? "" : "; our kernels " + result.isa,
                      result.n_rounds, result.n_rounds == 1 ? "round" : "rounds");
  text += "| test | depth | cache | tokens/s | over stock f16 | spread |\n|---|---|---|---|---|---|\n";
  for (const ModelRow& row : result.rows) {
    text += fmt::format("| {} | {} | {} | {:.1f} | {} | {:.1f} % |\n", row.test, row.depth, row.cache, row.tokens_per_second,
                        row.ratio_stock_f16 ? fmt::format("{:.2f}", *row.ratio_stock_f16) : "-", row.spread * 100);
  }
  if (!result.warnings.empty()) text += "\n";
  for (const std::string& warning : result.warnings) text += "- " + warning + "\n";
  return text;
}

std::string model_json(const ModelBenchResult& result) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const ModelRow& row : result.rows) {
    nlohmann::ordered_json object;
    object["model"] = result.model_name;
    object["cache"] = row.cache;
    object["test"] = row.test;
    object["depth"] = row.depth;
    object["threads"] = result.n_threads;
    object["tokens_per_second"] = std::round(row.tokens_per_second * 1000) / 1000;
    object["ratio_stock_f16"] = nullptr;
    if (row.ratio_stock_f16) object["ratio_stock_f16"] = std::round(*row.ratio_stock_f16 * 1000) / 1000;
    object["kv_bytes_per_token"] = row.kv_bytes_per_token;
    object["kv_bytes_fixed"] = row.kv_bytes_fixed;
    object["kv_bytes_per_token_f16"] = result.kv_bytes_per_token_f16;
    object["active_weight_bytes"] = result.active_weight_bytes;
    list.push_back(object);
  }
  return list.dump(2) + "\n";
}

}  // namespace kvt::cli
