#include "bench_report.h"

#include "child_process.h"
#include "cli_error.h"
#include "eval_plot.h"
#include "kvturbo/kvturbo.h"
#include "terminal_output.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>

namespace kvt::cli {

namespace fs = std::filesystem;

namespace {

using Json = nlohmann::json;
using namespace std::chrono_literals;

// One object of an input.
struct ModelRecord {
  std::string model, test, cache;
  double depth = 0, tokens_per_second = 0, ratio = 0;  // 0: not known
  double token_bytes = 0, fixed_bytes = 0;
};
struct KernelRecord {
  std::string codec, isa;
  unsigned head_dim, group, n_tokens, threads;
  double ns_per_token_head;
  double ratio_f16, ratio_ggml_f16, ratio_ggml_q4_0;  // 0: not known
};
struct Records {
  std::vector<ModelRecord> models;
  std::vector<KernelRecord> kernels;
  std::vector<DivergenceRow> divergences;
};

double number_or_zero(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_number() ? found->get<double>() : 0;
}

void read_object(const Json& object, Records* records) {
  if (object.contains("measure")) {
    if (object.at("measure") != "divergence") return;  // pass keys and greedy texts have no chart here
    DivergenceRow row;
    object.at("model").get_to(row.model);
    object.at("text").get_to(row.text);
    object.at("kv").get_to(row.kv);
    object.at("n_ctx").get_to(row.n_ctx);
    object.at("bits").get_to(row.cost.bits);
    object.at("bytes_per_token").get_to(row.cost.bytes_per_token);
    object.at("kld_mean").get_to(row.statistics.kld_mean.value);
    row.n_chunks = object.value("n_chunks", 0u);
    row.statistics.kld_mean.error = number_or_zero(object, "kld_mean_error");
    row.statistics.same_top.value = number_or_zero(object, "same_top");
    records->divergences.push_back(row);
  } else if (object.contains("test")) {
    records->models.push_back({object.at("model"), object.at("test"), object.at("cache"), object.at("depth"),
                               number_or_zero(object, "tokens_per_second"), number_or_zero(object, "ratio_stock_f16"),
                               number_or_zero(object, "kv_bytes_per_token"), number_or_zero(object, "kv_bytes_fixed")});
  } else {
    records->kernels.push_back({object.at("codec"), object.at("isa"), object.at("head_dim"), object.at("group"),
                                object.at("n_tokens"), object.at("threads"), object.at("ns_per_token_head"),
                                number_or_zero(object, "ratio_f16"), number_or_zero(object, "ratio_ggml_f16"),
                                number_or_zero(object, "ratio_ggml_q4_0")});
  }
}

void read_records(const std::string& path, Records* records) {
  const auto refuse = [&](const std::string& why) {
    throw CliError(kExitFailure, path, why, "give what bench model, bench kernel or eval prints with --json");
  };
  if (!fs::exists(path)) refuse("no such file");
  const Json list = Json::parse(read_file(path), nullptr, false);
  if (!list.is_array() || list.empty()) refuse("not a list of measurements");
  try {
    for (const Json& object : list) read_object(object, records);
  } catch (const Json::exception&) {
    refuse("not a list of measurements");
  }
}

// A cache has one colour in all charts.
int colour_of(const std::string& cache) {
  constexpr std::array kOrder = {"k4v3",      "stock q4_0", "stock q8_0", "hybrid", "k3v3", "k2v2",
                                 "stock f16", "scalar43",   "k8v4",       "k3v2",   "k8v3"};
  const auto found = std::find(kOrder.begin(), kOrder.end(), cache);
  return found != kOrder.end() ? static_cast<int>(found - kOrder.begin()) : static_cast<int>(kOrder.size());
}

std::string safe_name(std::string name) {
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c) && c != '.' && c != '-'; }, '_');
  return name;
}

std::string or_dash(double value, int digits) { return value > 0 ? fmt::format("{:.{}f}", value, digits) : "-"; }

// In order of their first appearance.
template <typename Record, typename Key>
std::vector<std::pair<std::string, std::vector<Record>>> grouped(const std::vector<Record>& records, const Key& key) {
  std::vector<std::pair<std::string, std::vector<Record>>> groups;
  for (const Record& record : records) {
    const std::string name = key(record);
    auto found = std::find_if(groups.begin(), groups.end(), [&](const auto& group) { return group.first == name; });
    if (found == groups.end()) found = groups.insert(found, {name, {}});
    found->second.push_back(record);
  }
  return groups;
}

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

// Lines of y over depth, one for each cache.
Chart depth_chart(const std::string& title, const std::string& y_label, const std::vector<ModelRecord>& records,
                  double (*y)(const ModelRecord&)) {
  Chart chart{.title = title, .x_label = "tokens in the cache", .y_label = y_label, .series = {}};
  chart.x_scale = chart.y_scale = AxisScale::kLinear;
  for (const auto& [cache, points] : grouped(records, [](const ModelRecord& r) { return r.cache; })) {
    ChartSeries series{.name = cache, .points = {}, .colour = colour_of(cache)};
    for (const ModelRecord& record : points) {
      if (std::isfinite(y(record))) series.points.push_back({record.depth, y(record), ""});
    }
    std::sort(series.points.begin(), series.points.end(), [](const ChartPoint& a, const ChartPoint& b) { return a.x < b.x; });
    if (!series.points.empty()) chart.series.push_back(series);
  }
  return chart;
}

bool is_generation(const std::string& test) { return test.starts_with("tg"); }

void add_speed(const std::vector<ModelRecord>& records, bool of_generation, std::vector<ReportSection>* sections) {
  for (const auto& [name, group] : grouped(records, [](const ModelRecord& r) { return r.model + ", " + r.test; })) {
    if (is_generation(group[0].test) != of_generation) continue;
    const std::string what = of_generation ? "Generation" : "Prompt";
    ReportSection speed{.name = "speed_depth_" + safe_name(name),
                        .heading = fmt::format("{} speed against depth: {}", what, name),
                        .note = "Higher is better. By the host's llama-bench, in which caches take turns.",
                        .chart = chart_svg(depth_chart(
                            name, "tokens/s", group,
                            [](const ModelRecord& r) { return r.tokens_per_second > 0 ? r.tokens_per_second : kUnknown; })),
                        .table = {{"cache", "depth", "tokens/s", "over stock f16"}, {}}};
    for (const ModelRecord& r : group) {
      speed.table.rows.push_back(
          {r.cache, with_thousands(static_cast<std::uint64_t>(r.depth)), or_dash(r.tokens_per_second, 1), or_dash(r.ratio, 2)});
    }
    sections->push_back(speed);
    sections->push_back({.name = "ratio_depth_" + safe_name(name),
                         .heading = fmt::format("{} speed over stock f16: {}", what, name),
                         .note = "1 is the stock f16 cache at the same depth.",
                         .chart = chart_svg(depth_chart(name, "tokens/s over stock f16", group,
                                                        [](const ModelRecord& r) { return r.ratio > 0 ? r.ratio : kUnknown; })),
                         .table = {}});
  }
}

// Straight lines from what a token takes, and what is kept exactly whatever the length.
void add_memory(const std::vector<ModelRecord>& records, std::vector<ReportSection>* sections) {
  for (const auto& [model, group] : grouped(records, [](const ModelRecord& r) { return r.model; })) {
    double deepest = 0;
    for (const ModelRecord& record : group) deepest = std::max(deepest, record.depth);
    if (deepest == 0) deepest = 8192;
    std::vector<ModelRecord> points;
    ReportSection memory{.name = "memory_depth_" + safe_name(model),
                         .heading = "Memory against depth: " + model,
                         .note =
                             "Lower is better. Everything counted: codes, norms, exact rows, conditioning. All layers at full "
                             "length; sliding windows take less.",
                         .chart = "",
                         .table = {{"cache", "bytes per token", "fixed bytes",
                                    fmt::format("MiB at {} tokens", with_thousands(static_cast<std::uint64_t>(deepest)))},
                                   {}}};
    for (const auto& [cache, of_cache] : grouped(group, [](const ModelRecord& r) { return r.cache; })) {
      ModelRecord record = of_cache[0];
      if (record.token_bytes <= 0) continue;
      for (const double depth : {0.0, deepest}) {
        record.depth = depth;
        points.push_back(record);
      }
      memory.table.rows.push_back({cache, with_thousands(static_cast<std::uint64_t>(record.token_bytes + 0.5)),
                                   with_thousands(static_cast<std::uint64_t>(record.fixed_bytes)),
                                   fmt::format("{:.1f}", (record.fixed_bytes + record.token_bytes * deepest) / 1048576)});
    }
    if (points.empty()) continue;
    memory.chart = chart_svg(depth_chart(
        model, "MiB", points, [](const ModelRecord& r) { return (r.fixed_bytes + r.token_bytes * r.depth) / 1048576; }));
    sections->push_back(memory);
  }
}

void add_divergence(const std::vector<DivergenceRow>& records, std::vector<ReportSection>* sections) {
  for (const auto& [name, group] : grouped(records, [](const DivergenceRow& r) { return r.model + ", " + r.text; })) {
    ReportSection section{
        .name = "kld_bits_" + safe_name(name),
        .heading = "Loss against bits: " + name,
        .note = "Lower and further left is better. KL divergence of the next token's distribution from the stock f16 cache's.",
        .chart = chart_svg(divergence_bits_chart(group)),
        .table = {{"cache", "context", "bits", "bytes per token", "mean KLD", "same top, %"}, {}}};
    std::set<unsigned> contexts;
    for (const DivergenceRow& r : group) {
      contexts.insert(r.n_ctx);
      section.table.rows.push_back({r.kv, with_thousands(r.n_ctx), or_dash(r.cost.bits, 2),
                                    with_thousands(static_cast<std::uint64_t>(r.cost.bytes_per_token + 0.5)),
                                    fmt::format("{:.5f} ± {:.5f}", r.statistics.kld_mean.value, r.statistics.kld_mean.error),
                                    or_dash(r.statistics.same_top.value, 1)});
    }
    sections->push_back(section);
    if (contexts.size() < 2) continue;
    sections->push_back({.name = "kld_depth_" + safe_name(name),
                         .heading = "Loss against context: " + name,
                         .note = "Lower is better.",
                         .chart = chart_svg(divergence_depth_chart(group)),
                         .table = {}});
  }
}

void add_kernels(const std::vector<KernelRecord>& records, std::vector<ReportSection>* sections) {
  if (records.empty()) return;
  ReportSection section{.name = "kernels",
                        .heading = "Attention kernels",
                        .note = "One decode step of one layer; ratios are times of the other over this one's.",
                        .chart = "",
                        .table = {{"cache", "kernels", "head dim", "query heads for a kv head", "tokens", "threads",
                                   "ns per token-head", "over own f16", "over ggml f16", "over ggml q4_0"},
                                  {}}};
  for (const KernelRecord& r : records) {
    section.table.rows.push_back({r.codec, r.isa, std::to_string(r.head_dim), std::to_string(r.group),
                                  with_thousands(r.n_tokens), std::to_string(r.threads),
                                  fmt::format("{:.2f}", r.ns_per_token_head), or_dash(r.ratio_f16, 2),
                                  or_dash(r.ratio_ggml_f16, 2), or_dash(r.ratio_ggml_q4_0, 2)});
  }
  sections->push_back(section);
}

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) result += c == '<' ? "&lt;" : c == '&' ? "&amp;" : c == '"' ? "&quot;" : std::string(1, c);
  return result;
}

std::string table_html(const ReportTable& table) {
  if (table.rows.empty()) return "";
  std::string html = "<table>\n<thead><tr>";
  for (const std::string& cell : table.head) html += "<th>" + escaped(cell) + "</th>";
  html += "</tr></thead>\n<tbody>\n";
  for (const auto& row : table.rows) {
    html += "<tr>";
    for (const std::string& cell : row) html += "<td>" + escaped(cell) + "</td>";
    html += "</tr>\n";
  }
  return html + "</tbody>\n</table>\n";
}

constexpr const char* kStyle =
    R"(body { font-family: sans-serif; color: #222; max-width: 2000px; margin: 2em auto; padding: 0 1em; line-height: 1.4; }
h1 { font-size: 1.5em; } h2 { font-size: 1.1em; margin: 0 0 .3em; }
p { margin: .3em 0 .8em; color: #555; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 620px), 1fr)); gap: 1.5em; align-items: start; }
section { border: 1px solid #ddd; border-radius: 6px; padding: 1em; overflow-x: auto; }
svg { width: 100%; height: auto; }
details { margin-top: .6em; } summary { cursor: pointer; color: #555; }
table { border-collapse: collapse; font-size: .85em; margin-top: .6em; }
th, td { border-bottom: 1px solid #e5e5e5; padding: .25em .8em .25em 0; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
)";

void write_file(const fs::path& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  if (!file.flush())
    throw CliError(kExitFailure, path.string(), "cannot be written", "name a place in a folder that can be written");
}

}  // namespace

std::vector<ReportSection> report_sections(const std::vector<std::string>& inputs) {
  Records records;
  for (const std::string& path : inputs) read_records(path, &records);
  std::vector<ReportSection> sections;
  add_speed(records.models, true, &sections);
  add_memory(records.models, &sections);
  add_divergence(records.divergences, &sections);
  add_speed(records.models, false, &sections);
  add_kernels(records.kernels, &sections);
  return sections;
}

std::string report_page(const std::string& title, const std::vector<ReportSection>& sections) {
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" "
      "content=\"width=device-width, "
      "initial-scale=1\">\n<title>{0}</title>\n<style>\n{1}</style>\n</head>\n<body>\n<h1>{0}</h1>\n<p>Made by kvturbo {2} "
      "bench report. Compare only figures of one run.</p>\n<main>\n",
      escaped(title), kStyle, kvt_version());
  for (const ReportSection& section : sections) {
    const std::string table = table_html(section.table);
    html +=
        fmt::format("<section>\n<h2>{}</h2>\n<p>{}</p>\n{}", escaped(section.heading), escaped(section.note), section.chart);
    if (!table.empty())
      html += section.chart.empty() ? table : "<details><summary>Figures</summary>\n" + table + "</details>\n";
    html += "</section>\n";
  }
  return html + "</main>\n</body>\n</html>\n";
}

std::vector<fs::path> write_report(const ReportOptions& options) {
  const std::vector<ReportSection> sections = report_sections(options.inputs);
  if (sections.empty()) {
    throw CliError(kExitFailure, options.inputs.front(), "no speed, no divergence and no kernels in it",
                   "pass keys and greedy texts have no charts");
  }
  std::vector<fs::path> paths;
  const std::string page = report_page(options.title, sections);
  if (options.page_path == "-") {
    fmt::print("{}", page);
  } else {
    write_file(options.page_path, page);
    paths.push_back(options.page_path);
  }
  if (options.chart_folder.empty()) return paths;
  std::error_code ignored;  // writing will tell
  fs::create_directories(options.chart_folder, ignored);
  for (const ReportSection& section : sections) {
    if (section.chart.empty()) continue;
    const fs::path svg = fs::path(options.chart_folder) / (section.name + ".svg");
    write_file(svg, section.chart);
    paths.push_back(svg);
    const fs::path png = fs::path(svg).replace_extension(".png");
    if (run_command({"rsvg-convert", "--zoom", "2", "-o", png.string(), svg.string()}, {}, 30s).succeeded) paths.push_back(png);
  }
  return paths;
}

}  // namespace kvt::cli
