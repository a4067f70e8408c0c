#include "command_estimate.h"

#include "child_process.h"
#include "cli_error.h"
#include "machine_info.h"
#include "measured_tables.h"
#include "model_catalogue.h"
#include "model_store.h"
#include "terminal_output.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <vector>

namespace kvt::cli {

namespace {

using Json = nlohmann::ordered_json;

// The model of the tables in docs/performance.md.
constexpr const char* kSpeedModel = "smollm2-135m";
constexpr double kSpeedWeightBytes = 96576768, kSpeedF16BytesPerToken = 23040;  // as `estimate --json` has them
// The tables of docs/quality.md at this length and on this text.
constexpr const char* kLossText = "english";

struct Row {
  CacheType type;
  CacheSizes sizes;
  double bits = 0;  // per element, everything counted
  std::uint64_t longest_context = 0;
  std::optional<SpeedCurve::Value> speed;
  std::optional<double> kld;
};

struct EstimateResult {
  std::string model_name;
  ModelShape shape;
  std::uint64_t n_tokens = 0, n_slots = 1, memory_bytes = 0;
  std::vector<Row> rows;
  std::string speed_basis, loss_basis;
  std::vector<std::string> notes;
};

// "16G", "512MiB", "24gb": binary units.
std::uint64_t parse_memory(const std::string& text) {
  double value = 0;
  char unit = 0;
  int n_read = 0, n_ending = 0;
  if (std::sscanf(text.c_str(), "%lf%n%c%n", &value, &n_read, &unit, &n_ending) >= 2) n_read = n_ending;
  const std::string ending = text.substr(static_cast<std::size_t>(n_read));
  const std::string units = "kmgt";
  const std::size_t power = unit == 0 ? 0 : units.find(static_cast<char>(std::tolower(static_cast<unsigned char>(unit))));
  const bool is_known_ending = ending.empty() || ending == "B" || ending == "b" || ending == "iB" || ending == "ib";
  if (n_read == 0 || !(value > 0) || value > 1e6 || (unit != 0 && power == std::string::npos) || !is_known_ending) {
    throw CliError(kExitUsage, "--memory " + text, "is no size of memory", "give one such as 16G or 512M");
  }
  return static_cast<std::uint64_t>(value * std::exp2(unit == 0 ? 0 : 10.0 * static_cast<double>(power + 1)));
}

SpeedCurve built_in_curve() {
  kvt_codec* codec = nullptr;
  std::string isa;
  if (kvt_codec_create(KVT_CODEC_K4V3, 64, 64, &codec) == KVT_OK) isa = kvt_codec_isa(codec);
  kvt_codec_destroy(codec);
  return SpeedCurve(measured_speeds(performance_page(), isa), kSpeedWeightBytes, kSpeedF16BytesPerToken);
}

// From `kvturbo bench model --json`.
SpeedCurve curve_of_file(const std::string& path) {
  const auto fail = [&](const std::string& why) {
    return CliError(kExitFailure, path, why, "make it with: kvturbo bench model -m MODEL --json > " + path);
  };
  if (!std::ifstream(path)) throw fail("no such file");
  const nlohmann::json list = nlohmann::json::parse(read_file(path), nullptr, false);
  std::vector<SpeedPoint> points;
  double weight_bytes = 0, token_bytes = 0;
  try {
    for (const nlohmann::json& row : list) {
      if (!row.at("test").get<std::string>().starts_with("tg") || row.at("ratio_stock_f16").is_null()) continue;
      points.push_back({row.at("cache"), row.at("depth"), row.at("tokens_per_second"), row.at("ratio_stock_f16")});
      weight_bytes = row.at("active_weight_bytes");
      token_bytes = row.at("kv_bytes_per_token_f16");
    }
  } catch (const nlohmann::json::exception&) {
    throw fail("not what `kvturbo bench model --json` prints");
  }
  if (points.empty()) throw fail("no generation test with a stock f16 cache is in it");
  return SpeedCurve(std::move(points), weight_bytes, token_bytes);
}

// The measured model that resembles this one most: of its architecture, else with its head dim, else the first.
struct MeasuredModel {
  const char *name, *architecture;
  std::uint32_t head_dim;
};
constexpr MeasuredModel kMeasuredModels[] = {
    {"smollm2-135m", "llama", 64}, {"gemma3-270m", "gemma3", 256}, {"qwen2.5-coder-0.5b", "qwen2", 64}};

std::pair<const MeasuredModel*, std::string> nearest_model(const ModelShape& shape) {
  const auto find = [](const auto& is_wanted) {
    return std::find_if(std::begin(kMeasuredModels), std::end(kMeasuredModels), is_wanted);
  };
  const auto alike = find([&](const MeasuredModel& m) { return shape.architecture == m.architecture; });
  if (alike != std::end(kMeasuredModels)) return {alike, "the same architecture"};
  const auto as_wide = find([&](const MeasuredModel& m) { return shape.layers.front().key_dim == m.head_dim; });
  if (as_wide != std::end(kMeasuredModels)) return {as_wide, "the same head dim, another architecture"};
  return {kMeasuredModels, "another architecture and head dim"};
}

std::map<std::string, double> losses_of(const std::string& model) {
  std::map<std::string, double> losses;
  for (const MeasuredLoss& loss : measured_losses(quality_page())) {
    if (loss.model == model && loss.text == kLossText) losses.emplace(loss.cache, loss.kld_mean);
  }
  return losses;
}

EstimateResult estimate(const EstimateOptions& options) {
  EstimateResult result;
  const std::filesystem::path path = resolve_model(options.model);
  result.model_name = find_model(options.model) ? options.model : path.filename().string();
  result.shape = read_model_shape(path);
  const ModelShape& shape = result.shape;
  if (shape.layers.empty()) {
    throw CliError(kExitFailure, "model " + result.model_name,
                   "architecture '" + shape.architecture + "' keeps no keys and values, as far as its file says", "");
  }
  result.n_slots = options.n_slots;
  result.n_tokens = options.n_tokens != 0       ? options.n_tokens
                    : shape.context_length != 0 ? shape.context_length * options.n_slots
                                                : 4096;
  result.memory_bytes = options.memory.empty() ? memory_info().available_bytes : parse_memory(options.memory);

  const SpeedCurve curve = options.bench_path.empty() ? built_in_curve() : curve_of_file(options.bench_path);
  result.speed_basis =
      options.bench_path.empty() ? fmt::format("{} on 2 CPU cores (docs/performance.md)", kSpeedModel) : options.bench_path;
  const auto [nearest, why] = nearest_model(shape);
  const std::map<std::string, double> losses = losses_of(nearest->name);
  result.loss_basis = fmt::format("{} ({}), 1024 tokens of {} (docs/quality.md)", nearest->name, why, kLossText);

  ExactRows exact = options.exact;
  exact.is_conditioned = options.condition != "off";
  const double share = f16_bytes_read(shape, static_cast<double>(result.n_tokens) / static_cast<double>(result.n_slots)) /
                       static_cast<double>(shape.active_weight_bytes);
  std::set<int> n_layers_f16;
  double f16_total = 0;
  for (const CacheType& type : cache_types()) {
    Row row;
    row.type = type;
    row.sizes = cache_sizes(shape, type, exact, result.n_tokens, result.n_slots);
    if (type.name == "f16") f16_total = static_cast<double>(row.sizes.total_bytes);
    row.bits = 16 * static_cast<double>(row.sizes.total_bytes) / f16_total;
    row.longest_context = longest_context(shape, type, exact, result.memory_bytes, result.n_slots);
    const bool is_all_f16 = row.sizes.n_layers_f16 == static_cast<int>(shape.layers.size());
    row.speed = is_all_f16 || type.name == "f16" ? SpeedCurve::Value{1, false}
                                                 : curve.at(type.is_ours ? type.name : "stock " + type.name, share);
    if (const auto loss = losses.find(type.name); loss != losses.end()) row.kld = is_all_f16 ? 0 : loss->second;
    n_layers_f16.insert(row.sizes.n_layers_f16);
    result.rows.push_back(row);
  }

  result.notes = shape.notes;
  if (shape.is_latent()) {
    result.notes.push_back(
        "keys and values share one latent vector (MLA), which this version does not compress: f16 with ours");
  } else if (*n_layers_f16.rbegin() > 0) {
    result.notes.push_back(
        fmt::format("{} layers have head dims that ours does not compress: f16 there", *n_layers_f16.rbegin()));
  }
  return result;
}

// ---- what people read

std::string joined(const std::set<std::string>& parts) { return fmt::format("{}", fmt::join(parts, ", ")); }

std::string shape_text(const ModelShape& shape) {
  std::set<std::string> heads;
  std::size_t n_windows = 0;
  for (const CacheLayer& layer : shape.layers) {
    const bool is_even = layer.key_dim == layer.value_dim || layer.value_dim == 0;
    heads.insert(fmt::format("{} x {}{}", layer.n_kv_heads, layer.key_dim, is_even ? "" : fmt::format("/{}", layer.value_dim)));
    n_windows += layer.has_window;
  }
  std::string text = fmt::format("{}, {} of {} layers with a cache, kv heads {}", shape.architecture, shape.layers.size(),
                                 shape.n_layers, joined(heads));
  if (n_windows > 0) text += fmt::format(", {} with a window of {} tokens", n_windows, with_thousands(shape.window));
  return text;
}

// A markdown table whose columns are also aligned for the eye; the first one to the left, the others to the right.
std::string aligned_table(const std::vector<std::vector<std::string>>& lines) {
  std::vector<std::size_t> widths(lines.front().size(), 3);
  for (const auto& line : lines) {
    for (std::size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  std::string text;
  for (std::size_t n = 0; n < lines.size(); ++n) {
    text += "|";
    for (std::size_t i = 0; i < widths.size(); ++i) {
      text += i == 0 ? fmt::format(" {:<{}} |", lines[n][i], widths[i]) : fmt::format(" {:>{}} |", lines[n][i], widths[i]);
    }
    text += "\n";
    if (n > 0) continue;
    text += "|";
    for (std::size_t i = 0; i < widths.size(); ++i) text += fmt::format("{:-<{}}{}|", "", widths[i] + 1, i == 0 ? "-" : ":");
    text += "\n";
  }
  return text;
}

std::string speed_text(const Row& row) {
  if (!row.speed) return "not measured";
  return fmt::format("{}{:.2f} x", row.speed->is_extrapolated ? "~ " : "", row.speed->ratio);
}

void print_text(const EstimateResult& result) {
  const ModelShape& shape = result.shape;
  fmt::print("{}: {}; weights {}\n", result.model_name, shape_text(shape), gib(shape.weight_bytes));
  fmt::print("context {} tokens{}; memory {}\n\n", with_thousands(result.n_tokens),
             result.n_slots > 1 ? fmt::format(", shared by {} conversations", result.n_slots) : "", gib(result.memory_bytes));
  std::vector<std::vector<std::string>> lines = {
      {"cache", "bits", "bytes per token", "cache at that context", "longest that fits", "decode (1)", "mean KLD (2)"}};
  for (const Row& row : result.rows) {
    const std::string name = row.type.is_ours ? row.type.name : "stock " + row.type.name;
    if (!row.sizes.is_possible) {
      lines.push_back({name, "-", "-", "not for this head dim", "-", "-", "-"});
      continue;
    }
    lines.push_back({name, fmt::format("{:.2f}", row.bits),
                     with_thousands(static_cast<std::uint64_t>(row.sizes.token_bytes + 0.5)), gib(row.sizes.total_bytes),
                     row.longest_context > 0 ? with_thousands(row.longest_context) : "none", speed_text(row),
                     row.kld ? fmt::format("{:.4f}", *row.kld) : "not measured"});
  }
  fmt::print("{}\n", aligned_table(lines));
  const bool is_extrapolated = std::any_of(result.rows.begin(), result.rows.end(),
                                           [](const Row& row) { return row.speed && row.speed->is_extrapolated; });
  fmt::print("(1) Estimate: tokens/s over stock f16 at that context. Measured with {}, scaled by cache over weights{}.\n",
             result.speed_basis, is_extrapolated ? "; ~ is beyond what was measured" : "");
  fmt::print("    For your machine: kvturbo bench model -m MODEL --json > FILE, then --bench FILE.\n");
  fmt::print("(2) Estimate: nats from stock f16. Measured with {}.\n", result.loss_basis);
  fmt::print("    It grows with the context. For your model: kvturbo eval -m MODEL.\n");
  fmt::print("- Longest context: beside the weights and {} or so of working space.\n", gib(working_bytes(result.n_tokens)));
  const std::uint64_t trained = shape.context_length;
  if (trained > 0) fmt::print("- The model was trained on contexts of {} tokens.\n", with_thousands(trained));
  for (const std::string& note : result.notes) fmt::print("- {}.\n", note);
}

void print_json(const EstimateResult& result) {
  const ModelShape& shape = result.shape;
  Json json;
  json["model"] = result.model_name;
  json["architecture"] = shape.architecture;
  json["layers"] = shape.n_layers;
  json["layers_with_cache"] = shape.layers.size();
  json["window"] = shape.window;
  json["weight_bytes"] = shape.weight_bytes;
  json["active_weight_bytes"] = shape.active_weight_bytes;
  json["trained_context"] = shape.context_length;
  json["context"] = result.n_tokens;
  json["parallel"] = result.n_slots;
  json["memory_bytes"] = result.memory_bytes;
  json["working_bytes"] = working_bytes(result.n_tokens);
  json["decode_estimated_from"] = result.speed_basis;
  json["kld_estimated_from"] = result.loss_basis;
  json["caches"] = Json::array();
  for (const Row& row : result.rows) {
    if (!row.sizes.is_possible) continue;
    Json object;
    object["cache"] = row.type.is_ours ? row.type.name : "stock " + row.type.name;
    object["bits"] = row.bits;
    object["kv_bytes_per_token"] = row.sizes.token_bytes;
    object["kv_bytes_fixed"] = row.sizes.fixed_bytes;
    object["cache_bytes"] = row.sizes.total_bytes;
    object["longest_context"] = row.longest_context;
    object["decode_over_stock_f16_estimate"] = row.speed ? Json(row.speed->ratio) : Json();
    object["decode_is_extrapolated"] = row.speed && row.speed->is_extrapolated;
    object["kld_mean_estimate"] = row.kld ? Json(*row.kld) : Json();
    object["layers_not_compressed"] = row.sizes.n_layers_f16;
    json["caches"].push_back(object);
  }
  json["notes"] = result.notes;
  fmt::print("{}\n", json.dump(2));
}

}  // namespace

CLI::App* declare_estimate(CLI::App& app, EstimateOptions& options) {
  CLI::App* command =
      app.add_subcommand("estimate", "say what each cache would take and give with a model, from its file alone");
  command->add_option("-m,--model", options.model, "a name of `kvturbo models`, or a GGUF file")
      ->envname("KVTURBO_MODEL")
      ->required()
      ->type_name("MODEL");
  command
      ->add_option("-c", options.n_tokens, "context in tokens, of all conversations together (what the model was trained on)")
      ->check(CLI::Range(1, 1 << 30))
      ->type_name("N");
  command
      ->add_option("--parallel,--np", options.n_slots,
                   "or -np: conversations at once, each with its own part of the context (1)")
      ->check(CLI::Range(1, 4096))
      ->type_name("K");
  command->add_option("--memory", options.memory, "memory for weights and cache, such as 16G (what is available now)")
      ->type_name("SIZE");
  command->add_option("--bench", options.bench_path, "take speed from this output of `kvturbo bench model --json`")
      ->type_name("FILE");
  command->add_option("--recent", options.exact.n_recent, "newest tokens that are kept in fp16 (48)")
      ->envname("KVTURBO_RECENT")
      ->check(CLI::Range(0, KVT_MAX_RECENT))
      ->type_name("N");
  command->add_option("--sinks", options.exact.n_sinks, "first cells that are kept in fp16 (4)")
      ->envname("KVTURBO_SINKS")
      ->check(CLI::Range(0, KVT_MAX_EXACT))
      ->type_name("N");
  command->add_option("--condition", options.condition, "whether keys are conditioned, on or off (on)")
      ->envname("KVTURBO_CONDITION")
      ->check(CLI::IsMember({"on", "off"}))
      ->type_name("WORD");
  command->add_flag("--json", options.json, "print one JSON object");
  command->footer("Example: kvturbo estimate -m smollm2-135m -c 8192 --memory 4G");
  return command;
}

int command_estimate(const EstimateOptions& options) {
  const EstimateResult result = estimate(options);
  if (options.json) {
    print_json(result);
  } else {
    print_text(result);
  }
  return kExitOk;
}

}  // namespace kvt::cli
