// A pass key hidden at some depth of a long text: does the model still find it?
#pragma once

#include "eval_cells.h"

#include <string>
#include <vector>

namespace kvt::cli {

struct NeedleRow {
  std::string model, text, kv;
  unsigned n_ctx = 0;
  CacheCost cost;
  std::vector<unsigned> depths;  // percent of the context in front of the key
  std::vector<bool> found;       // for each depth
};

std::vector<NeedleRow> measure_needle(const EvalInputs& inputs);

}  // namespace kvt::cli
