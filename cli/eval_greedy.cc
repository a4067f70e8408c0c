#include "eval_greedy.h"

#include "cli_error.h"
#include "eval_server.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvt::cli {

namespace {

using nlohmann::json;

constexpr unsigned kPrompts = 6;

// Prompts from kPrompts places of the text, at equal distances.
json measure(const EvalInputs& inputs, const EvalCell& cell, EvalProgress& progress) {
  EvalServer server(inputs.options, inputs.host, cell.model, cell.setting, cell.n_ctx);
  const std::size_t n_prompt = cell.n_ctx - inputs.options.n_predict;
  const std::vector<int> tokens = server.tokenize_file(cell.text, kPrompts * n_prompt);
  json continuations = json::array();
  for (unsigned i = 0; i < kPrompts; ++i) {
    std::vector<int> prompt(tokens.begin() + static_cast<std::ptrdiff_t>(i * n_prompt),
                            tokens.begin() + static_cast<std::ptrdiff_t>((i + 1) * n_prompt));
    prompt.front() = tokens.front();  // the BOS, if the model wants one; one token of the text otherwise
    continuations.push_back(server.complete(prompt, inputs.options.n_predict).tokens);
    progress.update((i + 1.0) / kPrompts);
  }
  json result = cost_to_json(server.finish());
  result["tokens"] = continuations;
  return result;
}

unsigned count_same(const std::vector<int>& a, const std::vector<int>& b) {
  const auto difference = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return static_cast<unsigned>(difference.first - a.begin());
}

}  // namespace

std::vector<GreedyRow> measure_greedy(const EvalInputs& inputs) {
  const unsigned n_predict = inputs.options.n_predict;
  for (const unsigned n_ctx : inputs.options.contexts) {
    if (n_ctx > n_predict) continue;
    throw CliError(kExitUsage, fmt::format("-c {}", n_ctx), fmt::format("no room for a prompt and {} greedy tokens", n_predict),
                   "give a larger -c, or a smaller -n");
  }
  // Stock f16, against which the others are held, comes first.
  EvalInputs with_stock = inputs;
  with_stock.settings.insert(with_stock.settings.begin(), KvSetting{});
  const std::vector<EvalCell> cells = eval_cells(with_stock);
  std::vector<Measurement> measurements;
  for (const EvalCell& cell : cells) {
    json key = cell.key(inputs.host);
    key["measure"] = "greedy";
    key["prompts"] = {kPrompts, n_predict};
    measurements.push_back({fmt::format("{}.greedy.{}", cell.group_name(), cell.setting.name), key,
                            kPrompts * (cell.n_ctx + 8.0 * n_predict),
                            [&](EvalProgress& progress) { return measure(inputs, cell, progress); }});
  }
  const std::vector<json> results = run_measurements(inputs.store, measurements);
  std::vector<GreedyRow> rows;
  std::size_t stock = 0;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    if (i % with_stock.settings.size() == 0) {
      stock = i;
      continue;
    }
    GreedyRow row{cells[i].model.name,
                  cells[i].text.name,
                  cells[i].setting.name,
                  cells[i].n_ctx,
                  n_predict,
                  cost_from_json(results[i]),
                  {}};
    for (unsigned prompt = 0; prompt < kPrompts; ++prompt) {
      row.n_same.push_back(count_same(results[i].at("tokens").at(prompt), results[stock].at("tokens").at(prompt)));
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace kvt::cli
