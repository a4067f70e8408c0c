// The measured figures of docs/performance.md and docs/quality.md, read from the pages themselves, which are compiled in: what
// `kvturbo estimate` says of speed and loss has one source.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace kvt::cli {

// Decoding with a cache at a depth, in one run of `kvturbo bench model`.
struct SpeedPoint {
  std::string cache;  // "stock f16", "k4v3"
  double depth = 0;
  double tokens_per_second = 0;  // 0: not known
  double over_stock_f16 = 0;
};

// The tables of decode speed under "A whole model" in docs/performance.md; those for kernels `isa` first. SmolLM2-135M.
std::vector<SpeedPoint> measured_speeds(const std::string& page, const std::string& isa);

struct MeasuredLoss {
  std::string model, text;
  unsigned n_ctx = 0;
  std::string cache;
  double kld_mean = 0;
};

// The tables of divergence in docs/quality.md.
std::vector<MeasuredLoss> measured_losses(const std::string& page);

// The pages as compiled in.
const char* performance_page();
const char* quality_page();

// How fast decoding is with a cache, over stock f16, when the f16 cache is `share` times as large as the weights that a token
// needs. The measured curve, in which time grows linearly with the depth.
class SpeedCurve {
 public:
  // Of a model with so many bytes of weights and of f16 cache a token.
  SpeedCurve(std::vector<SpeedPoint> points, double weight_bytes, double f16_bytes_per_token);

  struct Value {
    double ratio = 0;
    bool is_extrapolated = false;  // beyond the deepest measurement
  };
  // nullopt if that cache was not measured at two depths.
  std::optional<Value> at(const std::string& cache, double share) const;

 private:
  std::vector<SpeedPoint> points_;
  double weight_bytes_, f16_bytes_per_token_;
};

}  // namespace kvt::cli
