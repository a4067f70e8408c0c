// The figures of `kvturbo bench kernel` as markdown for people and as JSON for programs.
#pragma once

#include <string>

#include "bench_kernel.h"

namespace kvt::cli {

std::string kernel_markdown(const KernelBenchOptions& options, const KernelBenchResult& result);

// A list of objects: codec, isa, head_dim, group, n_tokens, threads, ns_per_token_head, gb_per_s, ratio_f16, ratio_ggml_f16,
// ratio_ggml_q4_0; a ratio is null where there is nothing to compare with.
std::string kernel_json(const KernelBenchResult& result);

// Sentences that must not get lost, whatever the output: a baseline that is too slow, a host that was not found.
std::vector<std::string> kernel_warnings(const KernelBenchResult& result);

}  // namespace kvt::cli
