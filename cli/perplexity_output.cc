#include "perplexity_output.h"

#include <cmath>
#include <cstdlib>
#include <regex>

namespace kvt::cli {

namespace {

// The figures after "name  :" at the begin of a line: "Mean    KLD:   0.056767 ±   0.003734". Not finite if there are none.
Estimate figure(const std::string& output, const std::string& name) {
  std::size_t at = 0;
  for (;; ++at) {
    at = output.find(name, at);
    if (at == std::string::npos) return {NAN, NAN};
    if (at == 0 || output[at - 1] == '\n') break;
  }
  const std::size_t colon = output.find(':', at + name.size());
  const std::size_t end = output.find('\n', at);
  if (colon == std::string::npos || colon > end) return {NAN, NAN};
  Estimate estimate{NAN, NAN};
  char* rest = nullptr;
  const char* text = output.c_str() + colon + 1;
  const double value = std::strtod(text, &rest);
  if (rest == text) return estimate;
  estimate.value = value + 0.0;  // no -0
  const std::size_t sign = output.find("±", colon);
  if (sign >= end) return estimate;
  estimate.error = std::strtod(output.c_str() + sign + std::string("±").size(), nullptr);
  // A variance that rounding has made negative is printed as -nan: of logits that are the same.
  if (std::isnan(estimate.error)) estimate.error = 0;
  return estimate;
}

std::optional<unsigned> number_after(const std::string& output, const char* pattern) {
  std::smatch match;
  if (!std::regex_search(output, match, std::regex(pattern))) return std::nullopt;
  return static_cast<unsigned>(std::strtoul(match[1].str().c_str(), nullptr, 10));
}

}  // namespace

std::optional<DivergenceStatistics> parse_divergence(const std::string& output) {
  DivergenceStatistics statistics;
  statistics.kld_mean = figure(output, "Mean    KLD");
  statistics.kld_max = figure(output, "Maximum KLD").value;
  statistics.kld_999 = figure(output, "99.9%   KLD").value;
  statistics.kld_99 = figure(output, "99.0%   KLD").value;
  statistics.kld_median = figure(output, "Median  KLD").value;
  statistics.same_top = figure(output, "Same top p");
  statistics.ppl_ratio = figure(output, "Mean PPL(Q)/PPL(base)");
  statistics.ppl = figure(output, "Mean PPL(Q) ").value;
  statistics.ppl_base = figure(output, "Mean PPL(base)").value;
  for (const double value : {statistics.kld_mean.value, statistics.kld_mean.error, statistics.kld_max, statistics.kld_999,
                             statistics.kld_99, statistics.kld_median, statistics.same_top.value, statistics.same_top.error,
                             statistics.ppl_ratio.value, statistics.ppl_ratio.error, statistics.ppl, statistics.ppl_base}) {
    if (!std::isfinite(value)) return std::nullopt;
  }
  return statistics;
}

unsigned count_chunks_done(const std::string& output) {
  // "[1]11.9631,[2]13.6763," without, "   1      15.1042 ±    2.3671 ..." with --kl-divergence.
  static const std::regex chunk(R"(\[\d+\]\d+\.\d+,|(?:^|\n) *\d+ +\d+\.\d+ ±)");
  return static_cast<unsigned>(
      std::distance(std::sregex_iterator(output.begin(), output.end(), chunk), std::sregex_iterator()));
}

unsigned parse_n_chunks(const std::string& output) { return number_after(output, R"(over (\d+) chunks)").value_or(0); }

std::optional<unsigned> parse_too_short(const std::string& output) {
  return number_after(output, R"(tokenizes to only (\d+) tokens)");
}

}  // namespace kvt::cli
