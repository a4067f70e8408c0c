// kvturbo bench kernel: attention over compressed pages against our own f16 kernel and the host's flash attention, alternating
// in one run on the same shapes. docs/performance.md says how to read the figures.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "cli_options.h"

namespace kvt::cli {

struct KernelBenchOptions {
  unsigned head_dim = 128;
  std::vector<unsigned> groups = {1, 4, 8};  // query heads for each kv head
  std::vector<unsigned> token_counts;        // empty: 65536, or 4096 for prefill
  unsigned n_kv_heads = 8;
  unsigned n_queries = 1;            // 2 to 8: drafts; more: prefill
  std::vector<std::string> threads;  // numbers or "all"; empty: 1 and all
  std::vector<std::string> codecs = {"hybrid", "scalar43", "k4v3"};  // beside f16
  std::vector<std::string> isas;     // empty: all of this machine but scalar
  unsigned n_rounds = 0;             // 0: 15, or 5 if quick
  bool quick = false;                // ends within 40 s on two cores
  bool no_ggml = false;
  std::string ggml_layout = "head-major";  // or "token-major", llama.cpp's: see GgmlLayout
  CommonOptions common;                    // host_folder only
};

// The types of ggml's cache that we compare with, in this order everywhere.
inline constexpr std::array<const char*, 3> kGgmlTypes = {"f16", "q8_0", "q4_0"};

// Whether our f16 kernel, over which ratios are taken, reads at 90 % of stream bandwidth at G = 1: else no ratio may be quoted.
enum class Baseline { kGood, kWeak, kUnchecked };

struct KernelRow {
  std::string codec;  // a codec of ours, or "ggml f16" and so on
  std::string isa;    // empty for ggml's: it chooses by itself
  unsigned head_dim, group, n_tokens, threads;
  double ns_per_token_head;  // for one token of one kv head, all query rows together
  double gb_per_s;           // bytes of the cache read; these two are medians
  double best_gb_per_s;      // in the fastest round
  double share_of_stream;    // fastest round over fastest plain read of the run
  double spread;             // relative_spread of the rounds
  std::optional<double> ratio_f16;
  std::array<std::optional<double>, 3> ratio_ggml;  // order of kGgmlTypes
  Baseline baseline = Baseline::kUnchecked;
  bool fits_cache = false;  // the bytes fit the last-level cache: the share of stream says nothing
};

struct EncodeRow {
  std::string codec, isa, side;
  double ns_per_vector;
};

struct StreamRow {
  unsigned threads;
  double gb_per_s;
};

struct KernelBenchResult {
  std::vector<KernelRow> rows;
  std::vector<KernelRow> ggml_rows;
  std::vector<EncodeRow> encode_rows;
  std::vector<StreamRow> stream_rows;
  std::string ggml_version;  // empty: not measured
  std::string why_no_ggml;
  unsigned n_rounds = 0;    // fewest of any shape
  double waited_share = 0;  // of the measured time: other programs had the core
};

// Throws CliError for options that make no sense, or if two kernels disagree about the result.
KernelBenchResult bench_kernel(const KernelBenchOptions& options);

}  // namespace kvt::cli
