#include "bench_kernel_report.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "bench_support.h"
#include "kvturbo/kvturbo.h"

namespace kvt::cli {

namespace {

using Json = nlohmann::ordered_json;

std::string ratio_text(const std::optional<double>& ratio) { return ratio ? fmt::format("{:.2f}", *ratio) : "-"; }

// From here on other programs distort the ratios.
constexpr double kBusyShare = 0.02;

// The mark of a ratio that nobody should quote.
std::string baseline_mark(const KernelRow& row) { return row.codec != "f16" && row.baseline == Baseline::kWeak ? " [!]" : ""; }

std::string row_text(const KernelRow& row) {
  const std::string share = fmt::format("{:.0f} %{}", row.share_of_stream * 100, row.fits_cache ? " (cache)" : "");
  return fmt::format("| {} | {} | {} | {} | {} | {:.2f} | {:.1f} | {} | {}{} | {} | {} | {} | {:.1f} % |\n", row.n_tokens,
                     row.threads, row.group, row.codec, row.isa.empty() ? "-" : row.isa, row.ns_per_token_head, row.gb_per_s,
                     share, ratio_text(row.ratio_f16), baseline_mark(row), ratio_text(row.ratio_ggml[0]),
                     ratio_text(row.ratio_ggml[1]), ratio_text(row.ratio_ggml[2]), row.spread * 100);
}

bool same_shape(const KernelRow& a, const KernelRow& b) {
  return a.n_tokens == b.n_tokens && a.threads == b.threads && a.group == b.group;
}

Json rounded(const std::optional<double>& value) {
  if (!value) return nullptr;
  return std::round(*value * 1000) / 1000;
}

}  // namespace

std::string kernel_markdown(const KernelBenchOptions& options, const KernelBenchResult& result) {
  std::string text = fmt::format("kvturbo {} bench kernel, page format {}\n\n", kvt_version(), KVT_FORMAT_VERSION);
  text += fmt::format(
      "{}, {} cores; head dim {}, {} kv heads, {} {}; medians of {} or more rounds{}\n", cpu_model_name(), usable_cores(),
      options.head_dim, options.n_kv_heads, options.n_queries, options.n_queries == 1 ? "query" : "queries", result.n_rounds,
      result.ggml_version.empty() ? "" : "; host's ggml " + result.ggml_version + ", its cache " + options.ggml_layout);
  for (const StreamRow& row : result.stream_rows) {
    text +=
        fmt::format("stream read, {} {}: {:.1f} GB/s\n", row.threads, row.threads == 1 ? "thread" : "threads", row.gb_per_s);
  }
  text +=
      "\n| tokens | threads | G | cache | kernels | ns per token-head | GB/s | of stream | over own f16 | over ggml f16 | over "
      "ggml q8_0 | "
      "over ggml q4_0 | spread |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";
  for (std::size_t i = 0; i < result.rows.size(); ++i) {
    text += row_text(result.rows[i]);
    if (i + 1 < result.rows.size() && same_shape(result.rows[i], result.rows[i + 1])) continue;
    for (const KernelRow& row : result.ggml_rows) {
      if (same_shape(row, result.rows[i])) text += row_text(row);
    }
  }
  text += fmt::format("\nEncoders, one thread, head dim {}:\n\n| codec | side | kernels | ns per vector |\n|---|---|---|---|\n",
                      options.head_dim);
  for (const EncodeRow& row : result.encode_rows) {
    text += fmt::format("| {} | {} | {} | {:.0f} |\n", row.codec, row.side, row.isa, row.ns_per_vector);
  }
  text += "\n";
  for (const std::string& warning : kernel_warnings(result)) text += "- " + warning + "\n";
  return text;
}

std::string kernel_json(const KernelBenchResult& result) {
  Json list = Json::array();
  for (const KernelRow& row : result.rows) {
    Json object;
    object["codec"] = row.codec;
    object["isa"] = row.isa;
    object["head_dim"] = row.head_dim;
    object["group"] = row.group;
    object["n_tokens"] = row.n_tokens;
    object["threads"] = row.threads;
    object["ns_per_token_head"] = rounded(row.ns_per_token_head);
    object["gb_per_s"] = rounded(row.gb_per_s);
    object["ratio_f16"] = rounded(row.ratio_f16);
    object["ratio_ggml_f16"] = rounded(row.ratio_ggml[0]);
    object["ratio_ggml_q4_0"] = rounded(row.ratio_ggml[2]);
    list.push_back(object);
  }
  return list.dump(2) + "\n";
}

std::vector<std::string> kernel_warnings(const KernelBenchResult& result) {
  std::vector<std::string> warnings;
  bool unchecked = false, in_cache = false;
  for (const KernelRow& row : result.rows) {
    if (row.codec == "f16" && row.group == 1 && row.baseline == Baseline::kWeak) {
      warnings.push_back(fmt::format(
          "our f16 kernel ({}, {} threads, {} tokens) reaches {:.0f} % of stream at G=1: ratio over a baseline below "
          "90 %: do not quote [!]",
          row.isa, row.threads, row.n_tokens, row.share_of_stream * 100));
    }
    unchecked = unchecked || row.baseline == Baseline::kUnchecked;
    in_cache = in_cache || (row.fits_cache && row.codec != "f16");
  }
  if (result.waited_share > kBusyShare) {
    warnings.push_back(fmt::format(
        "the machine was busy: this program waited for a core during {:.0f} % of the measured time, which favours the "
        "shorter runs, ours: do not quote any figure",
        result.waited_share * 100));
  }
  if (unchecked) warnings.push_back("our f16 kernel was not held against stream: that needs one query and G=1 in the same run");
  if (in_cache) warnings.push_back("(cache): these bytes fit the last-level cache, so memory is not what limits them");
  if (result.ggml_version.empty()) warnings.push_back("ggml's flash attention was not measured: " + result.why_no_ggml);
  return warnings;
}

}  // namespace kvt::cli
