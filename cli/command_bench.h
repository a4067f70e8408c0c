// kvturbo bench: `kernel` and `model`. Declared beside the other commands, with its options here.
#pragma once

#include "bench_kernel.h"
#include "bench_model.h"

namespace kvt::cli {

struct BenchOptions {
  KernelBenchOptions kernel;
  ModelBenchOptions model;
  bool json = false;
  CLI::App* kernel_command = nullptr;
  CLI::App* model_command = nullptr;
};

// options must outlive app.
CLI::App* declare_bench(CLI::App& app, BenchOptions& options);

int command_bench(const BenchOptions& options);

}  // namespace kvt::cli
