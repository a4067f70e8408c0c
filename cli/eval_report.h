// The results of `kvturbo eval` as markdown and JSON.
#pragma once

#include "eval_divergence.h"
#include "eval_greedy.h"
#include "eval_needle.h"

#include <string>
#include <vector>

namespace kvt::cli {

struct EvalResults {
  std::vector<DivergenceRow> divergence;
  std::vector<NeedleRow> needle;
  std::vector<GreedyRow> greedy;
};

std::string eval_markdown(const EvalResults& results);

// A list of objects. All have measure, model, text, n_ctx, kv, bytes_per_token, bits. "divergence": kld_mean, kld_99, kld_999,
// kld_max, kld_median (nats), same_top (percent), ppl_ratio, ppl, ppl_base, standard errors as NAME_error, n_chunks, path
// (batched or decode). "needle": depths (percent), found. "greedy": n_predict, n_same for each prompt.
std::string eval_json(const EvalResults& results);

// Layers that stayed f16, and the like; one line each.
std::vector<std::string> eval_warnings(const EvalResults& results);

}  // namespace kvt::cli
