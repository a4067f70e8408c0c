// The results of `kvturbo eval` as charts.
#pragma once

#include "eval_divergence.h"

#include <filesystem>
#include <vector>

namespace kvt::cli {

// For each model and text: kld_bits_*.svg, mean KLD against bits per element, and, if there are several contexts,
// kld_depth_*.svg, mean KLD against the context. Returns their paths.
std::vector<std::filesystem::path> write_eval_plots(const std::filesystem::path& folder,
                                                    const std::vector<DivergenceRow>& rows);

}  // namespace kvt::cli
