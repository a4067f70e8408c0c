#include "eval_report.h"

#include "terminal_output.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace kvt::cli {

namespace {

using nlohmann::ordered_json;

// Three significant digits.
std::string number(double value) {
  if (value == 0) return "0";
  const int digits = std::clamp(2 - static_cast<int>(std::floor(std::log10(std::abs(value)))), 0, 6);
  return fmt::format("{:.{}f}", value, digits);
}

std::string cost_cells(const CacheCost& cost) {
  return fmt::format("{} | {}", cost.bits > 0 ? fmt::format("{:.2f}", cost.bits) : "?",
                     cost.bytes_per_token > 0 ? with_thousands(static_cast<std::uint64_t>(cost.bytes_per_token + 0.5)) : "?");
}

bool is_same_group(const DivergenceRow& a, const DivergenceRow& b) {
  return a.model == b.model && a.text == b.text && a.n_ctx == b.n_ctx && a.is_decode == b.is_decode;
}

const DivergenceRow* find_q4_0(const std::vector<DivergenceRow>& rows, const DivergenceRow& of) {
  const auto found = std::find_if(rows.begin(), rows.end(),
                                  [&](const DivergenceRow& row) { return row.kv == "q4_0" && is_same_group(row, of); });
  return found == rows.end() ? nullptr : &*found;
}

std::string divergence_tables(const std::vector<DivergenceRow>& rows) {
  std::string text;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const DivergenceRow& row = rows[i];
    if (i == 0 || !is_same_group(row, rows[i - 1])) {
      text += fmt::format("{}### {}, {}, {} x {} tokens{}\n\n", i == 0 ? "" : "\n", row.model, row.text, row.n_chunks,
                          row.n_ctx, row.is_decode ? ", token by token" : "");
      text +=
          "| cache | bits | bytes per token | mean KLD | over q4_0's | 99 % KLD | 99.9 % KLD | same top, % | PPL ratio |\n"
          "|---|---|---|---|---|---|---|---|---|\n";
    }
    const DivergenceStatistics& s = row.statistics;
    const DivergenceRow* const q4_0 = find_q4_0(rows, row);
    text += fmt::format("| `{}` | {} | {} ± {} | {} | {} | {} | {:.1f} ± {:.1f} | {:.4f} ± {:.4f} |\n", row.kv,
                        cost_cells(row.cost), number(s.kld_mean.value), number(s.kld_mean.error),
                        q4_0 ? number(s.kld_mean.value / q4_0->statistics.kld_mean.value) : "-", number(s.kld_99),
                        number(s.kld_999), s.same_top.value, s.same_top.error, s.ppl_ratio.value, s.ppl_ratio.error);
  }
  return text;
}

std::string needle_tables(const std::vector<NeedleRow>& rows) {
  std::string text;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const NeedleRow& row = rows[i];
    if (i == 0 || row.model != rows[i - 1].model || row.text != rows[i - 1].text || row.n_ctx != rows[i - 1].n_ctx) {
      text += fmt::format("{}### Pass key: {}, {}, {} tokens\n\n| cache | bits | bytes per token |", i == 0 ? "" : "\n",
                          row.model, row.text, row.n_ctx);
      for (const unsigned depth : row.depths) text += fmt::format(" at {} % |", depth);
      text += " found |\n|---|---|---|";
      for (std::size_t depth = 0; depth < row.depths.size(); ++depth) text += "---|";
      text += "---|\n";
    }
    text += fmt::format("| `{}` | {} |", row.kv, cost_cells(row.cost));
    for (const bool found : row.found) text += found ? " yes |" : " no |";
    text += fmt::format(" {} of {} |\n", std::count(row.found.begin(), row.found.end(), true), row.found.size());
  }
  return text;
}

std::string greedy_tables(const std::vector<GreedyRow>& rows) {
  std::string text;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const GreedyRow& row = rows[i];
    if (i == 0 || row.model != rows[i - 1].model || row.text != rows[i - 1].text || row.n_ctx != rows[i - 1].n_ctx) {
      text += fmt::format("{}### Greedy text: {}, {}, {} of {} tokens generated\n\n", i == 0 ? "" : "\n", row.model, row.text,
                          row.n_predict, row.n_ctx);
      text +=
          "| cache | bits | bytes per token | tokens as stock f16's, for each prompt | mean | same to the end |\n"
          "|---|---|---|---|---|---|\n";
    }
    std::string each;
    double sum = 0;
    for (const unsigned n_same : row.n_same) {
      each += (each.empty() ? "" : ", ") + std::to_string(n_same);
      sum += n_same;
    }
    text += fmt::format("| `{}` | {} | {} | {:.0f} | {} of {} |\n", row.kv, cost_cells(row.cost), each,
                        sum / static_cast<double>(row.n_same.size()),
                        std::count(row.n_same.begin(), row.n_same.end(), row.n_predict), row.n_same.size());
  }
  return text;
}

template <typename Row>
ordered_json common_fields(const char* measure, const Row& row) {
  ordered_json object;
  object["measure"] = measure;
  object["model"] = row.model;
  object["text"] = row.text;
  object["n_ctx"] = row.n_ctx;
  object["kv"] = row.kv;
  object["bytes_per_token"] = row.cost.bytes_per_token;
  object["bits"] = row.cost.bits;
  return object;
}

void put_estimate(ordered_json& object, const std::string& name, const Estimate& estimate) {
  object[name] = estimate.value;
  object[name + "_error"] = estimate.error;
}

}  // namespace

std::string eval_markdown(const EvalResults& results) {
  std::string text;
  for (const std::string& tables :
       {divergence_tables(results.divergence), needle_tables(results.needle), greedy_tables(results.greedy)}) {
    if (!tables.empty()) text += (text.empty() ? "" : "\n") + tables;
  }
  return text;
}

std::string eval_json(const EvalResults& results) {
  ordered_json list = ordered_json::array();
  for (const DivergenceRow& row : results.divergence) {
    ordered_json object = common_fields("divergence", row);
    const DivergenceStatistics& s = row.statistics;
    put_estimate(object, "kld_mean", s.kld_mean);
    object["kld_99"] = s.kld_99;
    object["kld_999"] = s.kld_999;
    object["kld_max"] = s.kld_max;
    object["kld_median"] = s.kld_median;
    put_estimate(object, "same_top", s.same_top);
    put_estimate(object, "ppl_ratio", s.ppl_ratio);
    object["ppl"] = s.ppl;
    object["ppl_base"] = s.ppl_base;
    object["n_chunks"] = row.n_chunks;
    object["path"] = row.is_decode ? "decode" : "batched";
    list.push_back(object);
  }
  for (const NeedleRow& row : results.needle) {
    ordered_json object = common_fields("needle", row);
    object["depths"] = row.depths;
    object["found"] = row.found;
    list.push_back(object);
  }
  for (const GreedyRow& row : results.greedy) {
    ordered_json object = common_fields("greedy", row);
    object["n_predict"] = row.n_predict;
    object["n_same"] = row.n_same;
    list.push_back(object);
  }
  return list.dump(2) + "\n";
}

std::vector<std::string> eval_warnings(const EvalResults& results) {
  std::vector<std::string> warnings;
  for (const DivergenceRow& row : results.divergence) {
    if (row.layers_compressed >= row.layers_total) continue;
    const std::string warning =
        fmt::format("{}, {}: {} of {} layers were compressed", row.model, row.kv, row.layers_compressed, row.layers_total);
    if (std::find(warnings.begin(), warnings.end(), warning) == warnings.end()) warnings.push_back(warning);
  }
  return warnings;
}

}  // namespace kvt::cli
