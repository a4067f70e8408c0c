// KLD and perplexity ratio against stock f16, by the stock llama-perplexity.
#pragma once

#include "eval_cells.h"
#include "perplexity_output.h"

#include <string>
#include <vector>

namespace kvt::cli {

struct DivergenceRow {
  std::string model, text, kv;
  unsigned n_ctx = 0, n_chunks = 0;
  bool is_decode = false;
  DivergenceStatistics statistics;
  CacheCost cost;
  int layers_compressed = 0, layers_total = 0;  // of ours
};

std::vector<DivergenceRow> measure_divergence(const EvalInputs& inputs);

}  // namespace kvt::cli
