#include "fit_probe.h"

#include <algorithm>
#include <cmath>

namespace kvt::plugin {

double score_error(CacheTensor* keys, size_t stream, const float* queries, size_t query_stride, float scale) {
  constexpr double kFewestKeys = 16;
  const RecentList list = keys->recent()->list_of(nullptr);
  const auto d = static_cast<size_t>(keys->head_dim()), n_heads = static_cast<size_t>(keys->n_heads());
  double worst = -1;
  for (size_t head = 0; head < n_heads; ++head) {
    const float* query = queries + head * query_stride;
    double n = 0, sum = 0, sum_of_squares = 0;
    for (size_t e = 0; e < list.n_entries; ++e) {
      const int32_t cell = list.cells[stream * list.n_entries + e];
      if (cell < keys->n_exact()) continue;
      float exact[KVT_MAX_HEAD_DIM], decoded[KVT_MAX_HEAD_DIM];
      host().ggml_fp16_to_fp32_row(list.rows + ((stream * n_heads + head) * list.n_entries + e) * d, exact, keys->head_dim());
      kvt_decode(keys->codec(), KVT_KEY, keys->head_pages(static_cast<int64_t>(stream), static_cast<int64_t>(head)),
                 keys->page_stride(), static_cast<size_t>(cell), 1, decoded, d);
      if (keys->conditioner() != nullptr) {
        keys->conditioner()->undo(static_cast<int64_t>(stream), static_cast<int64_t>(head), cell, decoded);
      }
      double error = 0;
      for (size_t i = 0; i < d; ++i) error += static_cast<double>(query[i]) * static_cast<double>(decoded[i] - exact[i]);
      error *= static_cast<double>(scale);
      n += 1;
      sum += error;
      sum_of_squares += error * error;
    }
    if (n < kFewestKeys) continue;
    worst = std::max(worst, std::sqrt(std::max(0.0, sum_of_squares / n - sum / n * (sum / n))));
  }
  return worst;
}

}  // namespace kvt::plugin
