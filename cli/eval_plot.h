// The results of `kvturbo eval` as charts.
#pragma once

#include "eval_divergence.h"
#include "svg_chart.h"

#include <filesystem>
#include <vector>

namespace kvt::cli {

// Of one model and text: mean KLD against bits per element, a point for each cache, a series for each context.
Chart divergence_bits_chart(const std::vector<DivergenceRow>& rows);
// Mean KLD against the context, a line for each cache.
Chart divergence_depth_chart(const std::vector<DivergenceRow>& rows);

// For each model and text: kld_bits_*.svg, mean KLD against bits per element, and, if there are several contexts,
// kld_depth_*.svg, mean KLD against the context. Returns their paths.
std::vector<std::filesystem::path> write_eval_plots(const std::filesystem::path& folder,
                                                    const std::vector<DivergenceRow>& rows);

}  // namespace kvt::cli
