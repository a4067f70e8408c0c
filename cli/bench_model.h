// kvturbo bench model: the stock llama-bench with the stock cache (f16, q8_0, q4_0) and with ours, alternating.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli_options.h"

namespace kvt::cli {

struct ModelBenchOptions {
  CommonOptions common;  // codec unused
  std::string model;
  std::vector<std::string> codecs = {"hybrid", "scalar43", "k4v3"};
  std::vector<std::string> stock_types = {"f16", "q8_0", "q4_0"};
  unsigned n_prompt = 512;
  unsigned n_gen = 64;
  std::vector<unsigned> depths;  // empty: 0, 2048, 8192, or 0, 2048 if quick
  unsigned n_rounds = 0;         // 0: 3, or 1 if quick
  unsigned n_threads = 0;        // 0: all usable cores
  bool quick = false;
  bool stock_only = false;
};

struct ModelRow {
  std::string cache;  // "stock f16", or a codec of ours
  std::string test;   // "pp512", "tg64"
  unsigned depth;
  double tokens_per_second;  // median of the rounds
  double spread;
  std::optional<double> ratio_stock_f16;
  double kv_bytes_per_token = 0, kv_bytes_fixed = 0;  // of all layers; the latter: exact rows and conditioning of a conversation
};

struct ModelBenchResult {
  std::vector<ModelRow> rows;
  std::string model_type, host_build, isa;
  std::string model_name;
  double kv_bytes_per_token_f16 = 0, active_weight_bytes = 0;  // from its file: by them `kvturbo estimate` scales
  unsigned n_threads = 0, n_rounds = 0;
  std::vector<std::string> warnings;
};

ModelBenchResult bench_model(const ModelBenchOptions& options);

std::string model_markdown(const ModelBenchResult& result);
// A list of objects, the rows. `kvturbo estimate --bench` and `kvturbo bench report` read it.
std::string model_json(const ModelBenchResult& result);

}  // namespace kvt::cli
