// The library on this machine: does every kernel table that the CPU has give the bytes of docs/format.md, and does its
// attention agree with the reference? Well below a second for each table.
#pragma once

#include "cpu/kernel_table.h"

#include <functional>
#include <string>
#include <vector>

namespace kvt::cli {

struct SelfTestResult {
  std::string isa;
  unsigned n_pages = 0;        // encoded and compared with their digests
  double attention_error = 0;  // over the size of the sum, as in docs/algorithm.md section 7
  std::string problem;         // empty: it passed
};

SelfTestResult test_kernels(const cpu::KernelTable& kernels);

// For each table of this build that the CPU has. progress is told the name of each before its turn.
std::vector<SelfTestResult> run_self_test(const std::function<void(const std::string&)>& progress);

}  // namespace kvt::cli
