// What the three measurements have in common: the cells of model x text x context x setting, and running those that the store
// lacks.
#pragma once

#include "eval_host.h"
#include "eval_progress.h"
#include "eval_store.h"
#include "eval_texts.h"

#include <functional>
#include <string>
#include <vector>

namespace kvt::cli {

struct EvalInputs {
  const EvalOptions& options;
  const EvalHost& host;
  EvalStore& store;
  std::vector<EvalModel> models;
  std::vector<EvalText> texts;
  std::vector<KvSetting> settings;
};

struct EvalCell {
  const EvalModel& model;
  const EvalText& text;
  unsigned n_ctx;
  const KvSetting& setting;

  // "smollm2-135m.english.1024"
  std::string group_name() const;
  // What every result of this cell depends on.
  nlohmann::json key(const EvalHost& host) const;
};

// In the order of the tables: the settings of one model, text and context follow each other.
std::vector<EvalCell> eval_cells(const EvalInputs& inputs);

struct Measurement {
  std::string name;
  nlohmann::json key;
  double work;                                           // relative to the others: for the progress bar
  std::function<nlohmann::json(EvalProgress&)> measure;  // may report its progress from 0 to 1
};

// The results, in order: from the store, or measured now and kept.
std::vector<nlohmann::json> run_measurements(EvalStore& store, const std::vector<Measurement>& measurements);

nlohmann::json cost_to_json(const CacheCost& cost);
CacheCost cost_from_json(const nlohmann::json& result);

}  // namespace kvt::cli
