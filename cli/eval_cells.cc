#include "eval_cells.h"

#include <fmt/format.h>

#include <optional>

namespace kvt::cli {

using nlohmann::json;

std::string EvalCell::group_name() const { return fmt::format("{}.{}.{}", model.name, text.name, n_ctx); }

json EvalCell::key(const EvalHost& host) const {
  return {{"model", model.sha256}, {"text", text.sha256}, {"n_ctx", n_ctx}, {"cache", host.key(setting)}};
}

std::vector<EvalCell> eval_cells(const EvalInputs& inputs) {
  std::vector<EvalCell> cells;
  for (const EvalModel& model : inputs.models) {
    for (const EvalText& text : inputs.texts) {
      for (const unsigned n_ctx : inputs.options.contexts) {
        for (const KvSetting& setting : inputs.settings) cells.push_back({model, text, n_ctx, setting});
      }
    }
  }
  return cells;
}

std::vector<json> run_measurements(EvalStore& store, const std::vector<Measurement>& measurements) {
  std::vector<std::optional<json>> known;
  double total = 0;
  for (const Measurement& measurement : measurements) {
    known.push_back(store.find(measurement.name, measurement.key));
    if (!known.back()) total += measurement.work;
  }
  EvalProgress progress(total);
  std::vector<json> results;
  for (std::size_t i = 0; i < measurements.size(); ++i) {
    const Measurement& measurement = measurements[i];
    if (!known[i]) known[i] = store.find(measurement.name, measurement.key);  // the same one may come twice
    if (!known[i]) {
      progress.begin_step(measurement.name, measurement.work);
      known[i] = measurement.measure(progress);
      store.keep(measurement.name, measurement.key, *known[i]);
      progress.end_step();
    }
    results.push_back(*known[i]);
  }
  return results;
}

json cost_to_json(const CacheCost& cost) { return {{"bytes_per_token", cost.bytes_per_token}, {"bits", cost.bits}}; }

CacheCost cost_from_json(const json& result) { return {result.at("bytes_per_token"), result.at("bits")}; }

}  // namespace kvt::cli
