// kvturbo bench: `kernel`, `model` and `report`. Declared beside the other commands, with its options here.
#pragma once

#include "bench_kernel.h"
#include "bench_model.h"
#include "bench_report.h"

namespace kvt::cli {

struct BenchOptions {
  KernelBenchOptions kernel;
  ModelBenchOptions model;
  ReportOptions report;
  bool json = false;
  CLI::App* kernel_command = nullptr;
  CLI::App* model_command = nullptr;
  CLI::App* report_command = nullptr;
};

// options must outlive app.
CLI::App* declare_bench(CLI::App& app, BenchOptions& options);

int command_bench(const BenchOptions& options);

}  // namespace kvt::cli
