#include "eval_divergence.h"

#include "cli_error.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <optional>
#include <system_error>

namespace kvt::cli {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;

constexpr const char* kProgram = "llama-perplexity";
// A token alone takes about so many times as long as one in a batch (SmolLM2 on two cores).
constexpr double kDecodeCost = 8;

json estimate_to_json(const Estimate& estimate) { return {estimate.value, estimate.error}; }
Estimate estimate_from_json(const json& pair) { return {pair.at(0), pair.at(1)}; }

json statistics_to_json(const DivergenceStatistics& s) {
  return {{"kld_mean", estimate_to_json(s.kld_mean)},
          {"kld_max", s.kld_max},
          {"kld_999", s.kld_999},
          {"kld_99", s.kld_99},
          {"kld_median", s.kld_median},
          {"same_top", estimate_to_json(s.same_top)},
          {"ppl_ratio", estimate_to_json(s.ppl_ratio)},
          {"ppl", s.ppl},
          {"ppl_base", s.ppl_base}};
}

DivergenceStatistics statistics_from_json(const json& result) {
  DivergenceStatistics s;
  s.kld_mean = estimate_from_json(result.at("kld_mean"));
  s.kld_max = result.at("kld_max");
  s.kld_999 = result.at("kld_999");
  s.kld_99 = result.at("kld_99");
  s.kld_median = result.at("kld_median");
  s.same_top = estimate_from_json(result.at("same_top"));
  s.ppl_ratio = estimate_from_json(result.at("ppl_ratio"));
  s.ppl = result.at("ppl");
  s.ppl_base = result.at("ppl_base");
  return s;
}

// A file of base logits: "_logits_", context, vocabulary, chunks; the tokens; for each token of the second halves two floats
// and the vocabulary in 16 bits. A full disk leaves a shorter one, without an error.
bool is_complete(const fs::path& logits) {
  std::ifstream file(logits, std::ios::binary);
  char magic[8];
  std::int32_t n_ctx = 0, n_vocab = 0, n_chunks = 0;
  file.read(magic, sizeof magic);
  for (std::int32_t* field : {&n_ctx, &n_vocab, &n_chunks}) file.read(reinterpret_cast<char*>(field), sizeof *field);
  if (!file || n_ctx <= 0 || n_vocab <= 0 || n_chunks <= 0) return false;
  const auto context = static_cast<std::uintmax_t>(n_ctx), chunks = static_cast<std::uintmax_t>(n_chunks);
  const std::uintmax_t row_bytes = 2 * ((static_cast<std::uintmax_t>(n_vocab) + 1) / 2 * 2 + 4);
  return fs::file_size(logits) == 20 + 4 * context * chunks + (context - 1 - context / 2) * chunks * row_bytes;
}

class DivergenceEval {
 public:
  explicit DivergenceEval(const EvalInputs& inputs) : inputs_(inputs), options_(inputs.options), cells_(eval_cells(inputs)) {
    inputs.host.program(kProgram);  // before anything is run
  }

  std::vector<DivergenceRow> run() {
    std::vector<Measurement> measurements;
    for (const EvalCell& cell : cells_) {
      measurements.push_back(
          {name(cell), key(cell), work(cell), [&](EvalProgress& progress) { return measure(cell, progress); }});
    }
    const std::vector<json> results = run_measurements(inputs_.store, measurements);
    std::vector<DivergenceRow> rows;
    for (std::size_t i = 0; i < cells_.size(); ++i) {
      const EvalCell& cell = cells_[i];
      rows.push_back({cell.model.name, cell.text.name, cell.setting.name, cell.n_ctx, options_.n_chunks, options_.decode,
                      statistics_from_json(results[i]), cost_from_json(results[i]), results[i].at("layers_compressed"),
                      results[i].at("layers_total")});
    }
    return rows;
  }

 private:
  double work(const EvalCell& cell) const { return cell.n_ctx * options_.n_chunks * (options_.decode ? kDecodeCost : 1); }

  std::string group_name(const EvalCell& cell) const { return fmt::format("{}x{}", cell.group_name(), options_.n_chunks); }

  std::string name(const EvalCell& cell) const {
    return group_name(cell) + (options_.decode ? ".decode." : ".") + cell.setting.name;
  }

  json key(const EvalCell& cell) const {
    json key = cell.key(inputs_.host);
    key["measure"] = "divergence";
    key["n_chunks"] = options_.n_chunks;
    key["decode"] = options_.decode;
    return key;
  }

  // Of stock f16 in batches, whatever the setting and the path: the same yardstick for all.
  fs::path logits_path(const EvalCell& cell) const {
    const EvalCell base{cell.model, cell.text, cell.n_ctx, stock_f16_};
    json key = base.key(inputs_.host);
    key["n_chunks"] = options_.n_chunks;
    return inputs_.store.logits_path(group_name(cell), key);
  }

  HostRun run_host(const EvalCell& cell, const KvSetting& setting, const std::vector<std::string>& more,
                   EvalProgress& progress) const {
    const std::string n_ctx = std::to_string(cell.n_ctx);
    std::vector<std::string> arguments = {"-c", n_ctx, "-b", n_ctx};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return inputs_.host.run(kProgram, arguments, setting, cell.model, [&](const std::string& output) {
      progress.update(static_cast<double>(count_chunks_done(output)) / options_.n_chunks);
    });
  }

  void make_logits(const EvalCell& cell, EvalProgress& progress) const {
    const fs::path path = logits_path(cell);
    // An interrupted run leaves nothing under the final name, and two runs at once do not write one file.
    const fs::path temporary = fmt::format("{}.{}.tmp", path.string(), getpid());
    progress.begin_step(group_name(cell) + ": base logits", 0);
    try {
      const HostRun run = run_host(cell, stock_f16_,
                                   {"--chunks", std::to_string(options_.n_chunks), "-f", cell.text.path.string(),
                                    "--kl-divergence-base", temporary.string()},
                                   progress);
      check_text(cell, run.output);
      if (!is_complete(temporary)) {
        throw CliError(kExitFailure, temporary.string(), "base logits are incomplete",
                       "free space there: kvturbo eval --clean removes old ones");
      }
      fs::rename(temporary, path);
    } catch (...) {
      std::error_code ignored;
      fs::remove(temporary, ignored);
      throw;
    }
  }

  void check_text(const EvalCell& cell, const std::string& output) const {
    if (const auto n_tokens = parse_too_short(output)) {
      throw CliError(kExitFailure, "text " + cell.text.name,
                     fmt::format("it has only {} tokens, -c {} needs {}", *n_tokens, cell.n_ctx, 2 * cell.n_ctx),
                     "give a longer text, or a smaller -c");
    }
    if (const unsigned n_chunks = parse_n_chunks(output); n_chunks < options_.n_chunks) {
      throw CliError(kExitFailure, "text " + cell.text.name,
                     fmt::format("it fills only {} chunks of {} tokens", n_chunks, cell.n_ctx),
                     fmt::format("give a longer text, or --chunks {}", n_chunks));
    }
  }

  json measure(const EvalCell& cell, EvalProgress& progress) const {
    const fs::path logits = logits_path(cell);
    if (!fs::exists(logits)) {
      make_logits(cell, progress);
      progress.begin_step(name(cell), work(cell));
    }
    std::vector<std::string> arguments = {"--kl-divergence-base", logits.string(), "--kl-divergence"};
    if (options_.decode) arguments.insert(arguments.end(), {"-ub", "1"});
    const HostRun run = run_host(cell, cell.setting, arguments, progress);
    const std::optional<DivergenceStatistics> statistics = parse_divergence(run.output);
    if (!statistics) {
      throw CliError(kExitFailure, fmt::format("{} ({})", kProgram, cell.setting.name), "its output has no KLD statistics",
                     "run again with --log FILE and see what it says");
    }
    json result = statistics_to_json(*statistics);
    result.update(cost_to_json(run.report ? our_cost(*run.report) : stock_cost(cell.model, cell.setting)));
    result["layers_compressed"] = run.report ? run.report->layers_compressed : 0;
    result["layers_total"] = run.report ? run.report->layers_total : 0;
    return result;
  }

  const EvalInputs& inputs_;
  const EvalOptions& options_;
  const KvSetting stock_f16_;
  const std::vector<EvalCell> cells_;
};

}  // namespace

std::vector<DivergenceRow> measure_divergence(const EvalInputs& inputs) { return DivergenceEval(inputs).run(); }

}  // namespace kvt::cli
