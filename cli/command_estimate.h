// kvturbo estimate: what each cache would take and give with a model, before anything runs.
#pragma once

#include "cache_sizes.h"

#include <CLI/CLI.hpp>

#include <cstdint>
#include <string>

namespace kvt::cli {

struct EstimateOptions {
  std::string model;           // -m, KVTURBO_MODEL
  std::uint64_t n_tokens = 0;  // -c; 0: what the model was trained on
  std::uint64_t n_slots = 1;   // -np
  std::string memory;          // --memory; empty: what is available now
  std::string bench_path;      // --bench; empty: the figures of docs/performance.md
  ExactRows exact;             // --recent, --sinks
  std::string condition;       // --condition; empty: on
  bool json = false;
};

CLI::App* declare_estimate(CLI::App& app, EstimateOptions& options);
int command_estimate(const EstimateOptions& options);

}  // namespace kvt::cli
