// Exact rows of kvt_attend: the first cells and the newest ones are attended in fp16, each query with a window of its own, all other
// cells by their codes. Exact rows here are unrelated to the codes of their cells, so that a cell that is taken from the wrong place,
// twice or not at all shows at once.
//
// Bounds as in attention_test.cc: 0.03 of sqrt(sum p^2 |v|^2) where codes take part, 2e-5 where all cells are exact.

#include <algorithm>
#include <thread>

#include "test_support.h"

namespace kvt_test {
namespace {

constexpr uint16_t kRemoved = 0xFC00;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr uint32_t kMeanCells = 128;

struct Case {
  kvt_codec_id codec = KVT_CODEC_K4V3;
  uint32_t d_k = 64, d_v = 64;
  uint32_t n_streams = 1, n_kv_heads = 2, n_group = 3, n_queries = 1, n_cells = 200;
  uint32_t n_exact = 4, n_recent = 40, window = 16, n_pinned = 0;
  bool has_mask = true, has_head_masks = false, is_conditioned = false;
  float softcap = 0;
  uint32_t n_threads = 1;
};

// Gaussian rows that halves hold.
std::vector<uint16_t> half_rows(uint64_t seed, size_t n) {
  std::vector<uint16_t> rows(n);
  for (size_t i = 0; i < n; ++i) {
    // Sign, an exponent for [0.25, 2), ten bits of fraction.
    const uint64_t z = splitmix64(seed, i);
    rows[i] = static_cast<uint16_t>((z & 1) << 15 | (13 + (z >> 1) % 3) << 10 | (z >> 8 & 1023));
  }
  return rows;
}

class Problem {
 public:
  explicit Problem(const Case& c) : c_(c), codec_(make_codec(c.codec, c.d_k, c.d_v)) {
    n_heads_ = c.n_kv_heads * c.n_group;
    n_kv_ = size_t{c.n_streams} * c.n_kv_heads;
    make_pages(KVT_KEY, c.d_k, 1, &k_pages_, &k_);
    make_pages(KVT_VALUE, c.d_v, 2, &v_pages_, &v_);
    q_ = gaussian_rows(3, size_t{c.n_streams} * c.n_queries * n_heads_, c.d_k);
    exact_k_ = half_rows(4, n_kv_ * c.n_exact * c.d_k);
    exact_v_ = half_rows(5, n_kv_ * c.n_exact * c.d_v);
    recent_k_ = half_rows(6, n_kv_ * c.n_recent * c.d_k);
    recent_v_ = half_rows(7, n_kv_ * c.n_recent * c.d_v);
    scale_.assign(size_t{c.n_kv_heads} * c.d_k, 1.0f);
    for (size_t i = 0; c.is_conditioned && i < scale_.size(); ++i) scale_[i] = std::ldexp(1.0f, static_cast<int>(i % 3) - 1);
    mean_.assign(n_kv_ * n_means() * c.d_k, 0);
    mean_unit_.assign(n_kv_ * n_means(), 0.0f);
    for (size_t i = 0; c.is_conditioned && i < mean_.size(); ++i) mean_[i] = static_cast<int8_t>(splitmix64(9, i) % 255 - 127);
    for (size_t i = 0; c.is_conditioned && i < mean_unit_.size(); ++i) mean_unit_[i] = static_cast<float>(1 + i % 3) / 64;
    make_entries();
    mask_.resize(size_t{c.n_streams} * n_heads_ * c.n_queries * c.n_cells);
    for (size_t i = 0; i < mask_.size(); ++i) {
      // Causal for the last cells, with holes.
      const size_t cell = i % c.n_cells, query = i / c.n_cells % c.n_queries;
      const bool is_future = cell + c.n_queries > c.n_cells + query;
      mask_[i] = is_future || splitmix64(8, i) % 5 == 0 ? kRemoved : half_bits_exact(0);
    }
    out_.assign(size_t{c.n_streams} * c.n_queries * n_heads_ * c.d_v, 0.0f);
    fill_args();
  }

  kvt_attention& args() { return args_; }
  const kvt_codec* codec() const { return codec_.get(); }
  const std::vector<float>& out() const { return out_; }

  // From now on query i alone asks, as it does when its token is the last one of the same list.
  void ask_alone(uint32_t i) {
    args_.n_queries = 1;
    args_.q = q_.data() + i * args_.q_query_stride / sizeof(float);
    args_.mask = mask_.data() + i * args_.mask_query_stride / sizeof(uint16_t);
    args_.out = out_.data() + i * args_.out_query_stride / sizeof(float);
    args_.recent_own = (c_.n_recent >= c_.n_queries ? c_.n_recent - c_.n_queries : 0) + i;
  }

  void run() {
    const size_t bytes = kvt_attend_workspace_bytes(codec_.get(), &args_, c_.n_threads);
    ASSERT_GT(bytes, 0u);
    std::vector<uint8_t> memory(bytes + 64);
    uint8_t* workspace = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    for (uint32_t thread = 0; thread < c_.n_threads; ++thread) {
      ASSERT_EQ(kvt_attend_thread(codec_.get(), &args_, workspace, thread, c_.n_threads), KVT_OK);
    }
  }

  // The error over all rows.
  double error() {
    double error_sum = 0, size_sum = 0;
    for (size_t s = 0; s < c_.n_streams; ++s)
      for (size_t query = 0; query < c_.n_queries; ++query)
        for (size_t head = 0; head < n_heads_; ++head) add_row_error(s, query, head, &error_sum, &size_sum);
    return std::sqrt(error_sum / size_sum);
  }

 private:
  // Rows of a stream's heads one after another, [stream][head][page].
  void make_pages(kvt_side side, uint32_t d, uint64_t seed, std::vector<uint8_t>* pages, std::vector<float>* decoded) {
    const size_t rows = pages_for(c_.n_cells) * KVT_PAGE_TOKENS;  // the last page is full: what lies past n_cells must not matter
    for (size_t i = 0; i < n_kv_; ++i) {
      const std::vector<uint8_t> of_head = encode_rows(codec_.get(), side, gaussian_rows(seed + 100 * i, rows, d), d);
      pages->insert(pages->end(), of_head.begin(), of_head.end());
      const std::vector<float> values = decode_rows(codec_.get(), side, of_head, c_.n_cells, d);
      decoded->insert(decoded->end(), values.begin(), values.end());
    }
  }

  // The newest cells in a scattered order, with gaps, a cell that is exact anyway and one past the end among them.
  void make_entries() {
    for (size_t s = 0; s < c_.n_streams; ++s) {
      std::vector<int32_t> cells(c_.n_recent);
      for (size_t e = 0; e < c_.n_recent; ++e) cells[e] = static_cast<int32_t>(c_.n_cells) - static_cast<int32_t>(c_.n_recent - e);
      if (c_.n_recent > 12) {
        std::swap(cells[3], cells[7]);
        cells[5] = -1;
        cells[8] = 1;  // below n_exact
        cells[10] = static_cast<int32_t>(c_.n_cells) + 70;
        if (c_.n_exact > 1) cells[11] = 70 + static_cast<int32_t>(s);  // an old cell that was written late
      }
      entries_.insert(entries_.end(), cells.begin(), cells.end());
    }
  }

  void fill_args() {
    kvt_attention& a = args_;
    a.struct_size = sizeof a;
    a.n_streams = c_.n_streams;
    a.n_kv_heads = c_.n_kv_heads;
    a.n_group = c_.n_group;
    a.n_queries = c_.n_queries;
    a.n_cells = c_.n_cells;
    a.k_pages = k_pages_.data();
    a.k_page_stride = kvt_page_bytes(codec_.get(), KVT_KEY);
    a.k_head_stride = pages_for(c_.n_cells) * a.k_page_stride;
    a.k_stream_stride = c_.n_kv_heads * a.k_head_stride;
    a.v_pages = v_pages_.data();
    a.v_page_stride = kvt_page_bytes(codec_.get(), KVT_VALUE);
    a.v_head_stride = pages_for(c_.n_cells) * a.v_page_stride;
    a.v_stream_stride = c_.n_kv_heads * a.v_head_stride;
    a.q = q_.data();
    a.q_head_stride = c_.d_k * sizeof(float);
    a.q_query_stride = n_heads_ * a.q_head_stride;
    a.q_stream_stride = c_.n_queries * a.q_query_stride;
    if (c_.has_mask) {
      a.mask = mask_.data();
      a.mask_query_stride = c_.n_cells * sizeof(uint16_t);
      a.mask_head_stride = c_.has_head_masks ? c_.n_queries * a.mask_query_stride : 0;
      a.mask_stream_stride = n_heads_ * c_.n_queries * a.mask_query_stride;
    }
    a.scale = 1.0f / std::sqrt(static_cast<float>(c_.d_k));
    a.logit_softcap = c_.softcap;
    a.out = out_.data();
    a.out_head_stride = c_.d_v * sizeof(float);
    a.out_query_stride = n_heads_ * a.out_head_stride;
    a.out_stream_stride = c_.n_queries * a.out_query_stride;
    if (c_.is_conditioned) {
      a.key_scale = scale_.data();
      a.key_scale_head_stride = c_.d_k * sizeof(float);
      a.key_mean = mean_.data();
      a.key_mean_head_stride = n_means() * c_.d_k;
      a.key_mean_stream_stride = c_.n_kv_heads * a.key_mean_head_stride;
      a.key_mean_unit = mean_unit_.data();
      a.key_mean_unit_head_stride = n_means() * sizeof(float);
      a.key_mean_unit_stream_stride = c_.n_kv_heads * a.key_mean_unit_head_stride;
      a.mean_cells = kMeanCells;
    }
    a.n_exact = c_.n_exact;
    a.exact_k = exact_k_.data();
    a.exact_k_head_stride = size_t{c_.n_exact} * c_.d_k * 2;
    a.exact_k_stream_stride = c_.n_kv_heads * a.exact_k_head_stride;
    a.exact_v = exact_v_.data();
    a.exact_v_head_stride = size_t{c_.n_exact} * c_.d_v * 2;
    a.exact_v_stream_stride = c_.n_kv_heads * a.exact_v_head_stride;
    a.n_recent = c_.n_recent;
    a.recent_window = c_.window;
    a.recent_pinned = c_.n_pinned;
    a.recent_own = c_.n_recent >= c_.n_queries ? c_.n_recent - c_.n_queries : 0;
    a.recent_cells = entries_.data();
    a.recent_cells_stream_stride = c_.n_recent * sizeof(int32_t);
    a.recent_k = recent_k_.data();
    a.recent_k_head_stride = size_t{c_.n_recent} * c_.d_k * 2;
    a.recent_k_stream_stride = c_.n_kv_heads * a.recent_k_head_stride;
    a.recent_v = recent_v_.data();
    a.recent_v_head_stride = size_t{c_.n_recent} * c_.d_v * 2;
    a.recent_v_stream_stride = c_.n_kv_heads * a.recent_v_head_stride;
  }

  size_t n_means() const { return (c_.n_cells + kMeanCells - 1) / kMeanCells; }

  bool is_seen(size_t s, size_t query, size_t head, size_t cell) const {
    const size_t mask_head = c_.has_head_masks ? head : 0;
    return !c_.has_mask || mask_[((s * n_heads_ + mask_head) * c_.n_queries + query) * c_.n_cells + cell] != kRemoved;
  }

  void add_row_error(size_t s, size_t query, size_t head, double* error_sum, double* size_sum) const {
    const size_t kv = s * c_.n_kv_heads + head / c_.n_group, scales = head / c_.n_group * c_.d_k;
    // Entry of each cell that this query attends through the list of the newest, -1 for the others.
    std::vector<int> entry(c_.n_cells, -1);
    uint32_t n_taken = 0;
    const auto take = [&](uint32_t e) {
      const int32_t cell = entries_[s * c_.n_recent + e];
      if (cell < static_cast<int32_t>(c_.n_exact) || cell >= static_cast<int32_t>(c_.n_cells)) return 0u;
      if (!is_seen(s, query, head, static_cast<size_t>(cell))) return 0u;
      entry[static_cast<size_t>(cell)] = static_cast<int>(e);
      return 1u;
    };
    const uint32_t n_pinned = std::min(c_.n_pinned, c_.n_recent);
    for (uint32_t e = 0; e < n_pinned; ++e) take(e);
    for (uint32_t e = std::min(args_.recent_own + static_cast<uint32_t>(query) + 1, c_.n_recent); e-- > n_pinned && n_taken < c_.window;) {
      n_taken += take(e);
    }
    const auto value_of = [&](const std::vector<float>& codes, const std::vector<uint16_t>& exact, const std::vector<uint16_t>& recent,
                              uint32_t d, size_t cell, size_t i) {
      if (cell < c_.n_exact) return half_value(exact[(kv * c_.n_exact + cell) * d + i]);
      if (entry[cell] >= 0) return half_value(recent[(kv * c_.n_recent + static_cast<size_t>(entry[cell])) * d + i]);
      return static_cast<double>(codes[(kv * c_.n_cells + cell) * d + i]);
    };
    const float* q = q_.data() + ((s * c_.n_queries + query) * n_heads_ + head) * c_.d_k;
    std::vector<double> score(c_.n_cells, -kInfinity);
    double largest = -kInfinity;
    for (size_t cell = 0; cell < c_.n_cells; ++cell) {
      if (!is_seen(s, query, head, cell)) continue;
      const bool is_exact = cell < c_.n_exact || entry[cell] >= 0;
      const size_t m = kv * n_means() + cell / kMeanCells;
      double x = 0;
      for (size_t i = 0; i < c_.d_k; ++i) {
        const double k = value_of(k_, exact_k_, recent_k_, c_.d_k, cell, i);
        const double mean = static_cast<double>(mean_[m * c_.d_k + i]) * static_cast<double>(mean_unit_[m]);
        x += static_cast<double>(q[i]) * (is_exact ? k : k * static_cast<double>(scale_[scales + i]) + mean);
      }
      x *= static_cast<double>(args_.scale);
      if (c_.softcap > 0) x = static_cast<double>(c_.softcap) * std::tanh(x / static_cast<double>(c_.softcap));
      score[cell] = x;
      largest = std::max(largest, x);
    }
    double sum = 0;
    for (const double x : score) sum += largest == -kInfinity ? 0 : std::exp(x - largest);
    std::vector<double> expected(c_.d_v, 0.0);
    for (size_t cell = 0; cell < c_.n_cells; ++cell) {
      const double p = sum > 0 ? std::exp(score[cell] - largest) / sum : 0;
      for (size_t i = 0; p > 0 && i < c_.d_v; ++i) {
        const double v = p * value_of(v_, exact_v_, recent_v_, c_.d_v, cell, i);
        expected[i] += v;
        *size_sum += v * v;
      }
    }
    const float* out = out_.data() + ((s * c_.n_queries + query) * n_heads_ + head) * c_.d_v;
    for (size_t i = 0; i < c_.d_v; ++i) {
      const double e = static_cast<double>(out[i]) - expected[i];
      *error_sum += e * e;
    }
  }

  Case c_;
  CodecPtr codec_;
  size_t n_heads_, n_kv_;
  std::vector<uint8_t> k_pages_, v_pages_;
  std::vector<float> k_, v_;  // decoded
  std::vector<float> q_, out_, scale_, mean_unit_;
  std::vector<int8_t> mean_;
  std::vector<uint16_t> exact_k_, exact_v_, recent_k_, recent_v_, mask_;
  std::vector<int32_t> entries_;
  kvt_attention args_{};
};

double error_of(const Case& c) {
  Problem problem(c);
  problem.run();
  return problem.error();
}

class ExactRows : public IsaTest {};

TEST_F(ExactRows, EveryCodec) {
  for (const kvt_codec_id codec : kCodecs) {
    if (codec == KVT_CODEC_F16) continue;
    EXPECT_LE(error_of({.codec = codec}), 0.03) << kvt_codec_name(codec);
    EXPECT_LE(error_of({.codec = codec, .d_k = 192, .d_v = 128, .is_conditioned = true}), 0.03) << kvt_codec_name(codec);
  }
}

// Where all cells are exact, nothing is lossy.
TEST_F(ExactRows, OnlyExactCells) {
  for (const uint32_t n_cells : {1u, 12u})
    for (const uint32_t n_exact : {0u, 4u})
      for (const bool is_conditioned : {false, true}) {
        const Case c{.d_k = 128, .d_v = 128, .n_cells = n_cells, .n_exact = n_exact, .n_recent = n_cells, .window = 64,
                     .has_mask = false, .is_conditioned = is_conditioned};
        EXPECT_LE(error_of(c), 2e-5) << n_cells << " " << n_exact << " " << is_conditioned;
      }
  EXPECT_LE(error_of({.n_cells = 60, .n_exact = 60}), 2e-5);
}

TEST_F(ExactRows, WindowsAndLists) {
  for (const uint32_t window : {1u, 15u, 64u})
    for (const uint32_t n_recent : {1u, 30u, 64u, 150u})
      for (const uint32_t n_exact : {0u, 1u, 64u})
        for (const uint32_t n_pinned : {0u, 5u, 64u})
          EXPECT_LE(error_of({.n_cells = 300, .n_exact = n_exact, .n_recent = n_recent, .window = window, .n_pinned = n_pinned}), 0.03)
              << window << " " << n_recent << " " << n_exact << " " << n_pinned;
}

// From one query to several blocks of query rows, masks for queries or for heads, and threads that share a unit.
TEST_F(ExactRows, QueriesMasksAndThreads) {
  for (const uint32_t n_queries : {1u, 2u, 7u, 50u})
    for (const bool has_head_masks : {false, true})
      for (const uint32_t n_threads : {1u, 3u}) {
        const Case c{.n_streams = 2, .n_queries = n_queries, .n_cells = 333, .n_recent = 60, .window = 20,
                     .has_head_masks = has_head_masks, .is_conditioned = true, .n_threads = n_threads};
        EXPECT_LE(error_of(c), 0.03) << n_queries << " " << has_head_masks << " " << n_threads;
      }
  EXPECT_LE(error_of({.n_cells = 500, .has_mask = false, .softcap = 5}), 0.03);
  EXPECT_LE(error_of({.n_cells = 500, .is_conditioned = true, .softcap = 5}), 0.03);
  EXPECT_LE(error_of({.n_group = 16, .n_queries = 8, .n_cells = 130}), 0.03);
}

// Drafts of speculative decoding: a query gives the same bits in a batch as alone. With several threads as well, as the pages are cut
// alike; up to 64 query rows a kv head, and as many exact rows as fit in one pass of 64.
TEST_F(ExactRows, DraftsGiveTheBitsOfSingleTokens) {
  for (const kvt_codec_id codec : kCodecs)
    for (const uint32_t n_queries : {2u, 3u, 4u, 5u, 12u})
      for (const uint32_t n_group : {1u, 3u, 5u})
        for (const uint32_t n_threads : {1u, 3u}) {
          const bool has_exact = codec != KVT_CODEC_F16;
          const Case c{.codec = codec, .n_group = n_group, .n_queries = n_queries, .n_cells = 333, .n_exact = has_exact ? 4u : 0u,
                       .n_recent = has_exact ? 60u : 0u, .window = 48, .is_conditioned = has_exact, .n_threads = n_threads};
          Problem together(c), alone(c);
          together.run();
          for (uint32_t i = 0; i < n_queries; ++i) {
            alone.ask_alone(i);
            alone.run();
          }
          EXPECT_EQ(together.out(), alone.out()) << kvt_codec_name(codec) << " " << n_queries << " " << n_group << " " << n_threads;
        }
}

TEST_F(ExactRows, BadArguments) {
  const auto status = [](auto change) {
    Problem problem(Case{});
    change(problem.args());
    return kvt_attend(problem.codec(), &problem.args());
  };
  EXPECT_EQ(status([](kvt_attention&) {}), KVT_OK);
  EXPECT_EQ(status([](kvt_attention& a) { a.recent_window = 0; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](kvt_attention& a) { a.recent_window = KVT_MAX_RECENT + 1; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](kvt_attention& a) { a.recent_pinned = KVT_MAX_EXACT + 1; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](kvt_attention& a) { a.recent_cells = nullptr; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](kvt_attention& a) { a.recent_k = nullptr; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](kvt_attention& a) { a.exact_v = nullptr; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](kvt_attention& a) { a.n_exact = KVT_MAX_EXACT + 1; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](kvt_attention& a) {
              static const int8_t mean[64] = {};
              a.key_mean = mean;
              a.mean_cells = 64;
            }),
            KVT_ERROR_INVALID_ARGUMENT);  // no units
  EXPECT_EQ(status([](kvt_attention& a) { a.recent_own = 1000000; }), KVT_OK);  // the last entry serves all
}

}  // namespace
}  // namespace kvt_test
