#include "eval_needle.h"

#include "child_process.h"
#include "cli_error.h"
#include "eval_server.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvt::cli {

namespace {

using nlohmann::json;

constexpr unsigned kAnswerTokens = 12;

// Five digits, other ones for each place.
unsigned pass_key(unsigned n_ctx, unsigned depth) { return 10000 + (n_ctx * 7919u + depth * 104729u + 40129u) % 90000; }

std::vector<int> hide_key(EvalServer& server, const std::vector<int>& text, unsigned n_ctx, unsigned depth) {
  const std::vector<int> needle = server.tokenize(
      fmt::format("\n\nThe pass key is {0}. Remember it: {0} is the pass key.\n\n", pass_key(n_ctx, depth)), false);
  const std::vector<int> question = server.tokenize("\n\nWhat is the pass key? The pass key is", false);
  const std::size_t n_text = n_ctx - kAnswerTokens - needle.size() - question.size();
  // At depth 0 the first token, which may be a BOS, stays in front.
  const auto cut = text.begin() + static_cast<std::ptrdiff_t>(std::max<std::size_t>(1, n_text * depth / 100));
  std::vector<int> prompt(text.begin(), cut);
  prompt.insert(prompt.end(), needle.begin(), needle.end());
  prompt.insert(prompt.end(), cut, text.begin() + static_cast<std::ptrdiff_t>(n_text));
  prompt.insert(prompt.end(), question.begin(), question.end());
  return prompt;
}

json measure(const EvalInputs& inputs, const EvalCell& cell, EvalProgress& progress) {
  EvalServer server(inputs.options, inputs.host, cell.model, cell.setting, cell.n_ctx);
  const std::vector<int> tokens = server.tokenize_file(cell.text, cell.n_ctx);
  std::vector<bool> found;
  for (const unsigned depth : inputs.options.depths) {
    const Completion answer = server.complete(hide_key(server, tokens, cell.n_ctx, depth), kAnswerTokens);
    found.push_back(answer.text.find(std::to_string(pass_key(cell.n_ctx, depth))) != std::string::npos);
    progress.update(static_cast<double>(found.size()) / static_cast<double>(inputs.options.depths.size()));
  }
  json result = cost_to_json(server.finish());
  result["found"] = found;
  return result;
}

}  // namespace

std::vector<NeedleRow> measure_needle(const EvalInputs& inputs) {
  const std::vector<EvalCell> cells = eval_cells(inputs);
  std::vector<Measurement> measurements;
  for (const EvalCell& cell : cells) {
    json key = cell.key(inputs.host);
    key["measure"] = "needle";
    key["depths"] = inputs.options.depths;
    const double work = static_cast<double>(cell.n_ctx) * static_cast<double>(inputs.options.depths.size());
    measurements.push_back({cell.group_name() + ".needle." + cell.setting.name, key, work,
                            [&](EvalProgress& progress) { return measure(inputs, cell, progress); }});
  }
  const std::vector<json> results = run_measurements(inputs.store, measurements);
  std::vector<NeedleRow> rows;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    rows.push_back({cells[i].model.name, cells[i].text.name, cells[i].setting.name, cells[i].n_ctx, cost_from_json(results[i]),
                    inputs.options.depths, results[i].at("found").get<std::vector<bool>>()});
  }
  return rows;
}

}  // namespace kvt::cli
