#include "self_test.h"

#include "api/codec_object.h"
#include "cpu/kernel_select.h"
#include "golden_digests.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace kvt::cli {

namespace {

// The rows of scripts/make_golden.py of the kind bell: sums of four centred 16-bit uniforms, exact in fp32.
float bell(std::uint64_t seed, std::uint64_t index, int exponent) {
  std::uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  const auto sum = static_cast<int>((z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48));
  return std::ldexp(static_cast<float>(sum - 131070), exponent);
}

std::vector<float> bell_row(std::uint64_t seed, unsigned head_dim) {
  std::vector<float> row(head_dim);
  for (unsigned i = 0; i < head_dim; ++i) row[i] = bell(seed, i, -15);
  return row;
}

std::uint64_t fnv1a(const std::vector<std::uint8_t>& bytes) {
  std::uint64_t digest = 0xCBF29CE484222325u;
  for (const std::uint8_t byte : bytes) digest = (digest ^ byte) * 0x100000001B3u;
  return digest;
}

std::string check_pages(const cpu::KernelTable& kernels, SelfTestResult* result) {
  for (const GoldenDigest& golden : kGoldenDigests) {
    const SideLayout layout = make_side_layout(golden.codec, golden.side, golden.head_dim);
    std::vector<std::uint8_t> page(layout.page_bytes);
    for (const unsigned cell : kDigestCells)
      kernels.encode_row(layout, bell_row(cell, golden.head_dim).data(), page.data(), cell);
    if (fnv1a(page) != golden.digest) {
      return fmt::format("{} {} of head dim {} are not encoded to the bytes of docs/format.md", kvt_codec_name(golden.codec),
                         golden.side == KVT_KEY ? "keys" : "values", golden.head_dim);
    }
    ++result->n_pages;
  }
  return "";
}

// One decode step of the default codec: 8 query heads on 2 kv heads over 300 cells, the last page not full.
class AttentionCheck {
 public:
  explicit AttentionCheck(const cpu::KernelTable& kernels)
      : codec_{KVT_CODEC_K4V3, make_side_layout(KVT_CODEC_K4V3, KVT_KEY, kDim),
               make_side_layout(KVT_CODEC_K4V3, KVT_VALUE, kDim), &kernels},
        out_(kKvHeads * kGroup * kDim) {
    fill(KVT_KEY, &k_pages_, &k_);
    fill(KVT_VALUE, &v_pages_, &v_);
    for (unsigned head = 0; head < kKvHeads * kGroup; ++head) {
      const std::vector<float> row = bell_row(7000 + head, kDim);
      q_.insert(q_.end(), row.begin(), row.end());
    }
  }

  // Root of the squared errors of all heads over the sum of p^2 |v|^2; below 0: the library refused.
  double error() {
    kvt_attention a{};
    a.struct_size = sizeof a;
    a.n_streams = 1;
    a.n_kv_heads = kKvHeads;
    a.n_group = kGroup;
    a.n_queries = 1;
    a.n_cells = kCells;
    a.k_pages = k_pages_.data();
    a.k_page_stride = codec_.key.page_bytes;
    a.k_head_stride = kPages * a.k_page_stride;
    a.v_pages = v_pages_.data();
    a.v_page_stride = codec_.value.page_bytes;
    a.v_head_stride = kPages * a.v_page_stride;
    a.q = q_.data();
    a.q_head_stride = a.out_head_stride = kDim * sizeof(float);
    a.q_query_stride = a.out_query_stride = kKvHeads * kGroup * kDim * sizeof(float);
    a.scale = kScale;
    a.out = out_.data();
    if (kvt_attend(&codec_, &a) != KVT_OK) return -1;
    double error_square = 0, size_square = 0;
    for (unsigned head = 0; head < kKvHeads * kGroup; ++head) add_head(head, &error_square, &size_square);
    return std::sqrt(error_square / size_square);
  }

 private:
  static constexpr unsigned kDim = 128, kKvHeads = 2, kGroup = 4, kCells = 300,
                            kPages = (kCells + kPageTokens - 1) / kPageTokens;
  static constexpr float kScale = 1 / 11.3137085f;  // root of the head dim

  // Pages [head][page], and what they decode to [head][cell][dim].
  void fill(kvt_side side, std::vector<std::uint8_t>* pages, std::vector<float>* rows) {
    const SideLayout& layout = codec_.layout(side);
    pages->assign(kKvHeads * kPages * layout.page_bytes, 0);
    rows->resize(kKvHeads * kCells * kDim);
    for (unsigned head = 0; head < kKvHeads; ++head) {
      std::uint8_t* of_head = pages->data() + head * kPages * layout.page_bytes;
      for (unsigned cell = 0; cell < kCells; ++cell) {
        const std::vector<float> row = bell_row(1000 * (2 * head + static_cast<unsigned>(side) + 1) + cell, kDim);
        codec_.kernels->encode_row(layout, row.data(), of_head + cell / kPageTokens * layout.page_bytes, cell % kPageTokens);
      }
      kvt_decode(&codec_, side, of_head, layout.page_bytes, 0, kCells, rows->data() + head * kCells * kDim, kDim);
    }
  }

  // The same attention in double precision, over the decoded rows.
  void add_head(unsigned head, double* error_square, double* size_square) const {
    const float* q = q_.data() + head * kDim;
    const float* k = k_.data() + head / kGroup * kCells * kDim;
    const float* v = v_.data() + head / kGroup * kCells * kDim;
    std::vector<double> weight(kCells), sum(kDim);
    double largest = -INFINITY, total = 0;
    for (unsigned cell = 0; cell < kCells; ++cell) {
      for (unsigned i = 0; i < kDim; ++i) weight[cell] += double{q[i]} * double{k[cell * kDim + i]} * double{kScale};
      largest = std::max(largest, weight[cell]);
    }
    for (double& w : weight) total += w = std::exp(w - largest);
    for (unsigned cell = 0; cell < kCells; ++cell) {
      for (unsigned i = 0; i < kDim; ++i) {
        const double part = weight[cell] / total * double{v[cell * kDim + i]};
        sum[i] += part;
        *size_square += part * part;
      }
    }
    for (unsigned i = 0; i < kDim; ++i) {
      const double e = double{out_[head * kDim + i]} - sum[i];
      *error_square += e * e;
    }
  }

  kvt_codec codec_;
  std::vector<std::uint8_t> k_pages_, v_pages_;
  std::vector<float> k_, v_, q_, out_;
};

}  // namespace

SelfTestResult test_kernels(const cpu::KernelTable& kernels) {
  constexpr double kMostError = 0.03;  // docs/algorithm.md section 7: roundings of queries and weights
  SelfTestResult result;
  result.isa = kernels.name;
  result.problem = check_pages(kernels, &result);
  result.attention_error = AttentionCheck(kernels).error();
  if (result.problem.empty() && !(result.attention_error >= 0 && result.attention_error <= kMostError)) {
    result.problem = fmt::format("attention errs by {:.4f} of its size, more than {}", result.attention_error, kMostError);
  }
  return result;
}

std::vector<SelfTestResult> run_self_test(const std::function<void(const std::string&)>& progress) {
  std::vector<SelfTestResult> results;
  for (const char* isa : {"scalar", "avx2", "avxvnni", "avx512", "neon"}) {
    const cpu::KernelTable* kernels = cpu::find_kernels(isa);
    if (kernels == nullptr) continue;
    progress(isa);
    results.push_back(test_kernels(*kernels));
  }
  return results;
}

}  // namespace kvt::cli
