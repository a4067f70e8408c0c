// kvturbo models: what is known by name, what is cached; fetch and verify.

#include "cli_error.h"
#include "commands.h"
#include "model_store.h"
#include "terminal_output.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace kvt::cli {

namespace {

const char* state_text(CacheState state) {
  switch (state) {
    case CacheState::kCached:
      return "cached";
    case CacheState::kDamaged:
      return "damaged";
    case CacheState::kAbsent:
      break;
  }
  return "-";
}

void fetch(const std::string& name) {
  const CatalogueModel* model = find_model(name);
  if (!model) {
    throw CliError(kExitUsage, "model '" + name + "'", "unknown", "did you mean " + names_like(name).front() + "?");
  }
  // By checksum: this is also the remedy for a file that was damaged without a change of its size.
  if (!verify_model(*model)) fetch_model(*model);
  fmt::print("{}\n", cached_path(*model).string());
}

int verify() {
  int exit_code = kExitOk;
  for (const CatalogueModel& model : model_catalogue()) {
    if (cache_state(model) == CacheState::kAbsent) continue;
    const bool good = verify_model(model);
    fmt::print("{:<20} {}\n", model.name,
               good ? "checksum good" : "damaged; fetch it again: kvturbo models --fetch " + model.name);
    if (!good) exit_code = kExitFailure;
  }
  return exit_code;
}

void print_json() {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const CatalogueModel& model : model_catalogue()) {
    nlohmann::ordered_json item;
    item["name"] = model.name;
    item["title"] = model.title;
    item["bytes"] = model.bytes;
    item["sha256"] = model.sha256;
    item["license"] = model.license;
    item["cached"] = cache_state(model) == CacheState::kCached;
    item["path"] = cached_path(model).string();
    list.push_back(item);
  }
  fmt::print("{}\n", list.dump(2));
}

void print_table() {
  fmt::print("{:<20} {:>7}  {:<8} {:<22} {}\n", "name", "size", "state", "licence", "for");
  for (const CatalogueModel& model : model_catalogue()) {
    fmt::print("{:<20} {:>7}  {:<8} {:<22} {}\n", model.name, megabytes(model.bytes), state_text(cache_state(model)),
               model.license, model.purpose);
  }
  fmt::print("folder: {}\n", models_folder().string());
}

}  // namespace

int command_models(const ModelsOptions& options) {
  for (const std::string& name : options.fetch) fetch(name);
  if (options.verify) return verify();
  if (!options.fetch.empty()) return kExitOk;
  if (options.json) {
    print_json();
  } else {
    print_table();
  }
  return kExitOk;
}

}  // namespace kvt::cli
