// A decode loop over a compressed cache, as an engine would write it: append one token, attend, repeat.
// Random keys and values stand in for a model. Prints the size of the cache and the error against exact attention.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "kvturbo/kvturbo.hpp"

namespace {

constexpr uint32_t kKvHeads = 2, kHeads = 8, kHeadDim = 128;
constexpr size_t kTokens = 1000;

std::vector<float> gaussian(std::mt19937& random, size_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& v : values) v = normal(random);
  return values;
}

// Plain attention of one query head over n_tokens exact rows.
std::vector<float> exact_attention(const float* q, const std::vector<float>& keys, const std::vector<float>& values, size_t n_tokens) {
  std::vector<double> weight(n_tokens);
  double total = 0;
  for (size_t t = 0; t < n_tokens; ++t) {
    double score = 0;
    for (uint32_t i = 0; i < kHeadDim; ++i) score += q[i] * keys[t * kHeadDim + i];
    total += weight[t] = std::exp(score / std::sqrt(double{kHeadDim}));
  }
  std::vector<float> out(kHeadDim);
  for (uint32_t i = 0; i < kHeadDim; ++i) {
    double sum = 0;
    for (size_t t = 0; t < n_tokens; ++t) sum += weight[t] / total * values[t * kHeadDim + i];
    out[i] = static_cast<float>(sum);
  }
  return out;
}

}  // namespace

int main() try {
  const kvt::Codec codec("k4v3", kHeadDim, kHeadDim);
  kvt::PageArray keys(codec, KVT_KEY, kKvHeads, kTokens), values(codec, KVT_VALUE, kKvHeads, kTokens);

  std::mt19937 random(1);
  std::vector<float> exact_keys, exact_values;  // of kv head 0, for the comparison at the end
  std::vector<float> q, out(kHeads * kHeadDim);
  for (size_t token = 0; token < kTokens; ++token) {
    const int64_t cell = static_cast<int64_t>(token);
    for (uint32_t head = 0; head < kKvHeads; ++head) {
      const std::vector<float> k = gaussian(random, kHeadDim), v = gaussian(random, kHeadDim);
      keys.encode(head, k, {&cell, 1});
      values.encode(head, v, {&cell, 1});
      if (head == 0) {
        exact_keys.insert(exact_keys.end(), k.begin(), k.end());
        exact_values.insert(exact_values.end(), v.begin(), v.end());
      }
    }
    q = gaussian(random, kHeads * kHeadDim);
    kvt::attend(codec, kvt::make_attention(codec, keys, values, static_cast<uint32_t>(token + 1), kHeads, q, out,
                                           1 / std::sqrt(float{kHeadDim})));
  }

  const std::vector<float> exact = exact_attention(q.data(), exact_keys, exact_values, kTokens);
  double error = 0, norm = 0;
  for (uint32_t i = 0; i < kHeadDim; ++i) {
    error += std::pow(out[i] - exact[i], 2);
    norm += exact[i] * exact[i];
  }
  const size_t f16_bytes = kTokens * kKvHeads * kHeadDim * 2 * sizeof(uint16_t);
  const size_t bytes = keys.size_bytes() + values.size_bytes();
  std::printf("%zu tokens: %zu bytes instead of %zu in fp16 (%.2f times fewer), relative error of the output %.3f\n", kTokens, bytes,
              f16_bytes, static_cast<double>(f16_bytes) / static_cast<double>(bytes), std::sqrt(error / norm));
  return error < 0.1 * norm ? 0 : 1;
} catch (const kvt::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
