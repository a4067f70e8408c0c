// Reads what the stock llama-perplexity prints with --kl-divergence.
#pragma once

#include <optional>
#include <string>

namespace kvt::cli {

struct Estimate {
  double value = 0;
  double error = 0;  // standard error
};

// KLD in nats, shares in percent.
struct DivergenceStatistics {
  Estimate kld_mean;
  double kld_max = 0, kld_999 = 0, kld_99 = 0, kld_median = 0;
  Estimate same_top;
  Estimate ppl_ratio;
  double ppl = 0, ppl_base = 0;
};

// nullopt if a figure is missing or not finite: the run has not come to its end.
std::optional<DivergenceStatistics> parse_divergence(const std::string& output);

// Chunks that are done so far, of a run with or without --kl-divergence.
unsigned count_chunks_done(const std::string& output);

// "over 8 chunks": how many it computes; fewer than asked if the text is short. 0 if it does not say.
unsigned parse_n_chunks(const std::string& output);

// Tokens of a text that was refused as too short; nullopt if it was not.
std::optional<unsigned> parse_too_short(const std::string& output);

}  // namespace kvt::cli
