#include "eval_plot.h"

#include "cli_error.h"
#include "eval_settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

namespace kvt::cli {

namespace {

std::string file_name(const std::string& prefix, const DivergenceRow& row) {
  std::string name = fmt::format("{}_{}_{}", prefix, row.model, row.text);
  std::replace(name.begin(), name.end(), '/', '_');
  return name + ".svg";
}

}  // namespace

Chart divergence_bits_chart(const std::vector<DivergenceRow>& rows) {
  Chart chart{.title = fmt::format("{}, {}", rows[0].model, rows[0].text),
              .x_label = "bits per element, all included",
              .y_label = "mean KLD from stock f16, nats",
              .series = {}};
  std::vector<unsigned> contexts;
  for (const DivergenceRow& row : rows) {
    // Stock f16 is the yardstick: its own KLD, zero but for rounding, would only stretch the axis.
    if (row.kv == "f16" || row.cost.bits <= 0) continue;
    auto context = std::find(contexts.begin(), contexts.end(), row.n_ctx);
    if (context == contexts.end()) context = contexts.insert(context, row.n_ctx);
    const bool is_stock = stock_type_bits(row.kv.substr(0, row.kv.find('/'))) > 0;
    const std::string name = fmt::format("{}, {} tokens", is_stock ? "stock" : "ours", row.n_ctx);
    auto series = std::find_if(chart.series.begin(), chart.series.end(), [&](const ChartSeries& s) { return s.name == name; });
    if (series == chart.series.end())
      series = chart.series.insert(series, {name, {}, false, 2 * static_cast<int>(context - contexts.begin()) + is_stock});
    series->points.push_back({row.cost.bits, row.statistics.kld_mean.value, row.n_ctx == contexts.front() ? row.kv : ""});
  }
  return chart;
}

Chart divergence_depth_chart(const std::vector<DivergenceRow>& rows) {
  Chart chart{.title = fmt::format("{}, {}", rows[0].model, rows[0].text),
              .x_label = "context, tokens (second half measured)",
              .y_label = "mean KLD from stock f16, nats",
              .series = {}};
  for (const DivergenceRow& row : rows) {
    if (row.kv == "f16") continue;
    auto series =
        std::find_if(chart.series.begin(), chart.series.end(), [&](const ChartSeries& s) { return s.name == row.kv; });
    if (series == chart.series.end()) series = chart.series.insert(series, {row.kv, {}, true});
    series->points.push_back({static_cast<double>(row.n_ctx), row.statistics.kld_mean.value, ""});
  }
  return chart;
}

std::vector<std::filesystem::path> write_eval_plots(const std::filesystem::path& folder,
                                                    const std::vector<DivergenceRow>& rows) {
  std::error_code ignored;  // writing will tell
  std::filesystem::create_directories(folder, ignored);
  std::vector<std::filesystem::path> paths;
  const auto write = [&](const std::string& name, const Chart& chart) {
    const std::string svg = chart_svg(chart);
    if (svg.empty()) return;
    paths.push_back(folder / name);
    std::ofstream file(paths.back());
    file << svg;
    if (!file.flush()) {
      throw CliError(kExitFailure, paths.back().string(), "cannot be written", "give another folder with --plot");
    }
  };
  std::vector<DivergenceRow> group;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const DivergenceRow& row = rows[i];
    group.push_back(row);
    if (i + 1 < rows.size() && rows[i + 1].model == row.model && rows[i + 1].text == row.text) {
      continue;
    }
    write(file_name("kld_bits", row), divergence_bits_chart(group));
    if (group.front().n_ctx != group.back().n_ctx) write(file_name("kld_depth", row), divergence_depth_chart(group));
    group.clear();
  }
  return paths;
}

}  // namespace kvt::cli
