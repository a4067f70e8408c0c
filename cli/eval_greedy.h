// How long the greedy continuation of a text stays that of stock f16.
#pragma once

#include "eval_cells.h"

#include <string>
#include <vector>

namespace kvt::cli {

struct GreedyRow {
  std::string model, text, kv;
  unsigned n_ctx = 0, n_predict = 0;
  CacheCost cost;
  std::vector<unsigned> n_same;  // for each prompt: tokens in front of the first difference; n_predict if there is none
};

// A context is a prompt and n_predict tokens. Stock f16 is run as well, whether it is among the settings or not.
std::vector<GreedyRow> measure_greedy(const EvalInputs& inputs);

}  // namespace kvt::cli
