// kvt_attend and kvt_attend_thread against softmax attention in double precision over the values that kvt_decode gives.
//
// Error of a row = |out - reference| / size, size = sqrt(sum_t p_t^2 |v_t|^2), which is the expected |reference| of unrelated
// value vectors and, unlike |reference| itself, never cancels.
//   f16:      fp32 arithmetic on exact values: 2e-5, and 2e-6 of the scores' deviation, since weights err by what scores err.
//   the rest: 0.03 over all rows of a call, twice that for one row, from two roundings (docs/algorithm.md section 7):
//     - weights in steps of w_max / 127 of their page: at most 64 / (12 * 127^2) * w_max^2 of squared error a page, which is
//       1.8 % of size for a page that one cell dominates and less for others;
//     - int8 queries: steps of about 1/25 of a standard deviation for Gaussian queries move scores by 1/25/sqrt(12) = 1.2 % of
//       their standard deviation, which is 1 here, and each weight by as much.

#include <algorithm>
#include <cstring>
#include <map>
#include <span>
#include <thread>
#include <tuple>
#include <utility>

#include "test_support.h"

namespace kvt_test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Every kind of keys and of values; the other codecs are made of the same sides.
constexpr kvt_codec_id kAttended[] = {KVT_CODEC_F16,  KVT_CODEC_HYBRID, KVT_CODEC_SCALAR43, KVT_CODEC_K4V3,
                                      KVT_CODEC_K3V3, KVT_CODEC_K2V2,   KVT_CODEC_K8V4};

enum class Mask { kNone, kShared, kPerHead };

struct Case {
  kvt_codec_id codec = KVT_CODEC_HYBRID;
  uint32_t d_k = 64, d_v = 64;
  uint32_t n_streams = 1, n_kv_heads = 1, n_group = 1, n_queries = 1, n_cells = 64;
  Mask mask = Mask::kNone;
  bool slopes = false, sinks = false;
  float softcap = 0;
  float score_deviation = 1;  // standard deviation of scores: 1 is a diffuse head, 4 a sharp one
  uint32_t n_threads = 1;
  bool unaligned = false;  // pages at odd addresses

  std::string name() const {
    std::string text = kvt_codec_name(codec);
    const std::pair<const char*, uint32_t> fields[] = {{" dk ", d_k},
                                                       {" dv ", d_v},
                                                       {" streams ", n_streams},
                                                       {" heads ", n_kv_heads},
                                                       {" group ", n_group},
                                                       {" queries ", n_queries},
                                                       {" cells ", n_cells},
                                                       {" mask ", static_cast<uint32_t>(mask)},
                                                       {" slopes ", slopes},
                                                       {" sinks ", sinks},
                                                       {" threads ", n_threads}};
    for (const auto& [label, value] : fields) text += label + std::to_string(value);
    return text + " softcap " + std::to_string(softcap);
  }
};

// Memory for threads: 64-byte aligned, full of garbage but for the 64 zero bytes that kvt_attend_thread asks for, and guarded.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : bytes_(bytes), memory_(bytes + 128, 0xC3) {
    at_ = memory_.data() + (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64) % 64;
    std::fill(at_, at_ + std::min<size_t>(64, bytes), uint8_t{0});
  }
  void* get() { return at_; }
  bool is_clean() const {
    const auto zero = [](uint8_t b) { return b == 0; };
    const uint8_t* end = memory_.data() + memory_.size();
    const uint8_t* begin = at_;
    return std::all_of(begin, begin + std::min<size_t>(64, bytes_), zero) &&
           std::all_of(begin + bytes_, end, [](uint8_t b) { return b == 0xC3; });
  }

 private:
  size_t bytes_;
  std::vector<uint8_t> memory_;
  uint8_t* at_;
};

// One attention problem with all its memory. Every stride has a gap, so that none can be taken for another.
class Problem {
 public:
  explicit Problem(const Case& c) : c_(c), codec_(make_codec(c.codec, c.d_k, c.d_v)) {
    n_heads_ = c.n_kv_heads * c.n_group;
    n_pages_ = std::max<size_t>(1, pages_for(c.n_cells));
    gap_ = c.unaligned ? 65 : 64;
    k_bytes_ = kvt_page_bytes(codec_.get(), KVT_KEY);
    v_bytes_ = kvt_page_bytes(codec_.get(), KVT_VALUE);
    take_pages(KVT_KEY, c.d_k, &k_pages_, &k_);
    take_pages(KVT_VALUE, c.d_v, &v_pages_, &v_);
    q_row_ = c.d_k + 4;
    q_ = gaussian_rows(13, size_t{c.n_streams} * c.n_queries * n_heads_, q_row_, c.score_deviation);
    out_row_ = c.d_v + 3;
    out_.assign(size_t{c.n_streams} * c.n_queries * n_heads_ * out_row_, kUntouched);
    make_mask();
    for (size_t h = 0; h < n_heads_; ++h) {
      slopes_.push_back(std::ldexp(1.0f, -static_cast<int>(h % 5)));
      sinks_.push_back(h % 4 == 3 ? -std::numeric_limits<float>::infinity() : static_cast<float>(h % 7) - 2.0f);
    }
    fill_args();
  }

  const Case& shape() const { return c_; }
  const kvt_codec* codec() const { return codec_.get(); }
  kvt_attention& args() { return args_; }
  std::vector<float>& out() { return out_; }
  uint8_t* k_page(size_t stream, size_t head, size_t page) {
    return k_pages_.data() + c_.unaligned + page_index(stream, head, page) * (k_bytes_ + gap_);
  }
  uint8_t* v_page(size_t stream, size_t head, size_t page) {
    return v_pages_.data() + c_.unaligned + page_index(stream, head, page) * (v_bytes_ + gap_);
  }
  uint16_t& mask_at(size_t stream, size_t head, size_t query, size_t cell) {
    return mask_[((stream * mask_heads_ + head % mask_heads_) * c_.n_queries + query) * mask_row_ + cell];
  }

  // Writes NaN norms (f16: NaN rows) over a cell of every head of a stream, on both sides.
  void poison_cell(size_t stream, size_t cell) {
    for (size_t head = 0; head < c_.n_kv_heads; ++head) {
      poison(k_page(stream, head, cell / 64), k_bytes_, c_.d_k, c_.codec == KVT_CODEC_HYBRID ? 2 : 1, cell % 64);
      poison(v_page(stream, head, cell / 64), v_bytes_, c_.d_v, 1, cell % 64);
    }
  }

  // One call on this thread for each thread number, in the given order; `threads`: on real threads.
  std::vector<float> run(uint32_t n_threads, bool reverse = false, bool threads = false) {
    std::fill(out_.begin(), out_.end(), kUntouched);
    const size_t bytes = kvt_attend_workspace_bytes(codec_.get(), &args_, n_threads);
    EXPECT_GT(bytes, 0u);
    Workspace workspace(bytes);
    const auto share = [&](uint32_t thread) {
      EXPECT_EQ(kvt_attend_thread(codec_.get(), &args_, workspace.get(), thread, n_threads), KVT_OK);
    };
    std::vector<std::thread> pool;
    for (uint32_t i = 0; i < n_threads; ++i) {
      const uint32_t thread = reverse ? n_threads - 1 - i : i;
      if (threads) {
        pool.emplace_back(share, thread);
      } else {
        share(thread);
      }
    }
    for (std::thread& thread : pool) thread.join();
    EXPECT_TRUE(workspace.is_clean()) << c_.name();
    check_gaps();
    return out_;
  }

  // Compares out with the double-precision reference; returns the error over all rows.
  double check(const std::vector<float>& out) {
    const double bound = c_.codec == KVT_CODEC_F16 ? 2e-5 + 2e-6 * static_cast<double>(c_.score_deviation) : 0.03;
    double error_sum = 0;
    double size_sum = 0;
    std::vector<double> reference(c_.d_v);
    for (size_t s = 0; s < c_.n_streams; ++s) {
      for (size_t query = 0; query < c_.n_queries; ++query) {
        for (size_t head = 0; head < n_heads_; ++head) {
          const double size_square = reference_row(s, query, head, reference.data());
          const float* row = out.data() + out_index(s, query, head);
          double error_square = 0;
          for (size_t i = 0; i < c_.d_v; ++i) {
            const double e = static_cast<double>(row[i]) - reference[i];
            error_square += e * e;
            if (size_square == 0 && row[i] != 0.0f) {
              ADD_FAILURE() << c_.name() << ": a row without cells is not zero";
              return kInfinity;
            }
          }
          if (!(error_square <= 4 * bound * bound * size_square)) {
            ADD_FAILURE() << c_.name() << ": stream " << s << " query " << query << " head " << head << " errs by "
                          << std::sqrt(error_square / size_square);
            return kInfinity;
          }
          error_sum += error_square;
          size_sum += size_square;
        }
      }
    }
    const double error = size_sum > 0 ? std::sqrt(error_sum / size_sum) : 0;
    EXPECT_LE(error, bound) << c_.name();
    return error;
  }

  // Largest difference of two results over the sizes of their rows.
  double difference(const std::vector<float>& a, const std::vector<float>& b) {
    double largest = 0;
    std::vector<double> reference(c_.d_v);
    for (size_t s = 0; s < c_.n_streams; ++s)
      for (size_t query = 0; query < c_.n_queries; ++query)
        for (size_t head = 0; head < n_heads_; ++head) {
          const double size = std::sqrt(reference_row(s, query, head, reference.data()));
          double sum = 0;
          for (size_t i = 0; i < c_.d_v; ++i) {
            const size_t at = out_index(s, query, head) + i;
            const double e = static_cast<double>(a[at]) - static_cast<double>(b[at]);
            sum += e * e;
          }
          if (size > 0) largest = std::max(largest, std::sqrt(sum) / size);
        }
    return largest;
  }

 private:
  static constexpr float kUntouched = -12345.0f;
  static constexpr size_t kMaskGap = 5;

  size_t page_index(size_t stream, size_t head, size_t page) const {
    return stream * (c_.n_kv_heads * n_pages_ + 1) + head * n_pages_ + page;
  }
  size_t out_index(size_t stream, size_t query, size_t head) const {
    return ((stream * c_.n_queries + query) * n_heads_ + head) * out_row_;
  }

  // Many cases have the same pages, and writing them takes longer than attending them: kept, and copied for each.
  void take_pages(kvt_side side, uint32_t d, std::vector<uint8_t>* pages, std::vector<float>* decoded) {
    using Shape = std::tuple<kvt_codec_id, kvt_side, uint32_t, uint32_t, uint32_t, uint32_t, bool>;
    static std::map<Shape, std::pair<std::vector<uint8_t>, std::vector<float>>> kept;
    const auto [it, is_new] = kept.try_emplace(Shape{c_.codec, side, d, c_.n_streams, c_.n_kv_heads, c_.n_cells, c_.unaligned});
    if (is_new) it->second.first = make_pages(side, d, side == KVT_KEY ? 11 : 12, &it->second.second);
    std::tie(*pages, *decoded) = it->second;
  }

  // Pages of all streams and heads, and the decoded rows [stream][head][cell][d].
  std::vector<uint8_t> make_pages(kvt_side side, uint32_t d, uint64_t seed, std::vector<float>* decoded) {
    const size_t stride = kvt_page_bytes(codec_.get(), side) + gap_;
    std::vector<uint8_t> pages(page_index(c_.n_streams, 0, 0) * stride + c_.unaligned);
    const std::vector<float> rows = gaussian_rows(seed, size_t{c_.n_streams} * c_.n_kv_heads * c_.n_cells, d);
    const std::vector<int64_t> cells = cells_from(0, c_.n_cells);
    decoded->resize(rows.size());
    for (size_t s = 0; s < c_.n_streams; ++s)
      for (size_t head = 0; head < c_.n_kv_heads && c_.n_cells > 0; ++head) {
        uint8_t* at = pages.data() + c_.unaligned + page_index(s, head, 0) * stride;
        const size_t first = (s * c_.n_kv_heads + head) * c_.n_cells * d;
        EXPECT_EQ(kvt_encode(codec_.get(), side, rows.data() + first, d, c_.n_cells, cells.data(), at, stride), KVT_OK);
        EXPECT_EQ(kvt_decode(codec_.get(), side, at, stride, 0, c_.n_cells, decoded->data() + first, d), KVT_OK);
      }
    return pages;
  }

  // A third of the cells removed, the others with small biases; stream 0's first query sees nothing.
  void make_mask() {
    mask_row_ = c_.n_cells + kMaskGap;
    mask_heads_ = c_.mask == Mask::kPerHead ? n_heads_ : 1;
    mask_.assign(size_t{c_.n_streams} * mask_heads_ * c_.n_queries * mask_row_, 0x7E00);  // NaN in the gaps
    const uint16_t choices[] = {0xFC00, half_bits_exact(0), half_bits_exact(-0.75), half_bits_exact(0.5), half_bits_exact(-3),
                                0xFC00};
    for (size_t s = 0; s < c_.n_streams; ++s)
      for (size_t head = 0; head < mask_heads_; ++head)
        for (size_t query = 0; query < c_.n_queries; ++query)
          for (size_t cell = 0; cell < c_.n_cells; ++cell) {
            const bool sees_nothing = c_.n_queries > 1 && s == 0 && query == 0;
            const uint64_t pick = splitmix64(14, ((s * n_heads_ + head) * c_.n_queries + query) * c_.n_cells + cell);
            mask_at(s, head, query, cell) = sees_nothing ? 0xFC00 : choices[pick % std::size(choices)];
          }
  }

  void fill_args() {
    args_.struct_size = sizeof args_;
    args_.n_streams = c_.n_streams;
    args_.n_kv_heads = c_.n_kv_heads;
    args_.n_group = c_.n_group;
    args_.n_queries = c_.n_queries;
    args_.n_cells = c_.n_cells;
    args_.k_pages = k_page(0, 0, 0);
    args_.k_page_stride = k_bytes_ + gap_;
    args_.k_head_stride = n_pages_ * args_.k_page_stride;
    args_.k_stream_stride = page_index(1, 0, 0) * args_.k_page_stride;
    args_.v_pages = v_page(0, 0, 0);
    args_.v_page_stride = v_bytes_ + gap_;
    args_.v_head_stride = n_pages_ * args_.v_page_stride;
    args_.v_stream_stride = page_index(1, 0, 0) * args_.v_page_stride;
    args_.q = q_.data();
    args_.q_head_stride = q_row_ * sizeof(float);
    args_.q_query_stride = n_heads_ * args_.q_head_stride;
    args_.q_stream_stride = c_.n_queries * args_.q_query_stride;
    if (c_.mask != Mask::kNone) {
      args_.mask = mask_.data();
      args_.mask_query_stride = mask_row_ * sizeof(uint16_t);
      args_.mask_head_stride = c_.mask == Mask::kPerHead ? c_.n_queries * args_.mask_query_stride : 0;
      args_.mask_stream_stride = mask_heads_ * c_.n_queries * args_.mask_query_stride;
    }
    if (c_.slopes) args_.slopes = slopes_.data();
    if (c_.sinks) args_.sinks = sinks_.data();
    args_.scale = 1.0f / std::sqrt(static_cast<float>(c_.d_k));
    args_.logit_softcap = c_.softcap;
    args_.out = out_.data();
    args_.out_head_stride = out_row_ * sizeof(float);
    args_.out_query_stride = n_heads_ * args_.out_head_stride;
    args_.out_stream_stride = c_.n_queries * args_.out_query_stride;
  }

  void poison(uint8_t* page, size_t page_bytes, size_t d, size_t n_norms, size_t slot) {
    const uint8_t nan[2] = {0x00, 0x7E};
    if (c_.codec == KVT_CODEC_F16) {
      for (size_t i = 0; i < d; ++i) std::memcpy(page + 2 * (slot * d + i), nan, 2);
    } else {
      for (size_t part = 0; part < n_norms; ++part) std::memcpy(page + page_bytes - 128 * (n_norms - part) + 2 * slot, nan, 2);
    }
  }

  void check_gaps() {
    for (size_t row = 0; row < out_.size() / out_row_; ++row)
      for (size_t i = c_.d_v; i < out_row_; ++i) ASSERT_EQ(out_[row * out_row_ + i], kUntouched);
  }

  // Writes the exact output; returns sum p^2 |v|^2.
  double reference_row(size_t s, size_t query, size_t head, double* out) {
    const size_t kv_head = head / c_.n_group;
    const float* q = q_.data() + ((s * c_.n_queries + query) * n_heads_ + head) * q_row_;
    const float* k = k_.data() + (s * c_.n_kv_heads + kv_head) * c_.n_cells * c_.d_k;
    const float* v = v_.data() + (s * c_.n_kv_heads + kv_head) * c_.n_cells * c_.d_v;
    std::vector<double> score(c_.n_cells, -kInfinity);
    double largest = c_.sinks ? static_cast<double>(sinks_[head]) : -kInfinity;
    for (size_t cell = 0; cell < c_.n_cells; ++cell) {
      const double mask = c_.mask == Mask::kNone ? 0 : half_value(mask_at(args_.mask_stream_stride ? s : 0, head, query, cell));
      if (mask == -kInfinity) continue;
      double x = 0;
      for (size_t i = 0; i < c_.d_k; ++i) x += static_cast<double>(q[i]) * static_cast<double>(k[cell * c_.d_k + i]);
      x *= static_cast<double>(args_.scale);
      if (c_.softcap > 0) x = static_cast<double>(c_.softcap) * std::tanh(x / static_cast<double>(c_.softcap));
      score[cell] = x + (c_.slopes ? static_cast<double>(slopes_[head]) : 1) * mask;
      largest = std::max(largest, score[cell]);
    }
    std::fill(out, out + c_.d_v, 0.0);
    if (largest == -kInfinity) return 0;
    double sum = c_.sinks ? std::exp(static_cast<double>(sinks_[head]) - largest) : 0;
    for (const double x : score) sum += std::exp(x - largest);
    double size_square = 0;
    for (size_t cell = 0; cell < c_.n_cells; ++cell) {
      const double p = std::exp(score[cell] - largest) / sum;
      if (p == 0) continue;
      for (size_t i = 0; i < c_.d_v; ++i) {
        const double value = p * static_cast<double>(v[cell * c_.d_v + i]);
        out[i] += value;
        size_square += value * value;
      }
    }
    return size_square;
  }

  Case c_;
  CodecPtr codec_;
  size_t n_heads_, n_pages_, gap_, k_bytes_, v_bytes_, q_row_, out_row_, mask_row_, mask_heads_;
  std::vector<uint8_t> k_pages_, v_pages_;
  std::vector<float> k_, v_;  // decoded
  std::vector<float> q_, out_, slopes_, sinks_;
  std::vector<uint16_t> mask_;
  kvt_attention args_{};
};

// kvt_attend and one thread of kvt_attend_thread are the same computation.
void check_case(const Case& c) {
  Problem problem(c);
  const std::vector<float> out = problem.run(c.n_threads);
  problem.check(out);
  if (c.n_threads == 1) {
    EXPECT_EQ(kvt_attend(problem.codec(), &problem.args()), KVT_OK);
    EXPECT_EQ(std::memcmp(problem.out().data(), out.data(), out.size() * sizeof(float)), 0) << c.name();
  }
}

class Attention : public IsaTest {};

// 0 and 1 cells, one less and one more than a page and two pages' worth with a short tail.
TEST_F(Attention, LengthsAndHeadDims) {
  const std::pair<uint32_t, uint32_t> dims[] = {{64, 64},   {80, 80},   {96, 96},   {112, 112},
                                                {128, 128}, {192, 128}, {256, 256}, {64, 256}};
  for (const kvt_codec_id codec : kCodecs)
    for (const auto& [d_k, d_v] : dims)
      for (const uint32_t n_cells : {0u, 1u, 63u, 64u, 65u, 200u}) {
        Case c{.codec = codec, .d_k = d_k, .d_v = d_v, .n_group = 3, .n_queries = 2, .n_cells = n_cells};
        check_case(c);
        c.mask = Mask::kShared;
        check_case(c);
      }
}

TEST_F(Attention, LongContext) {
  for (const kvt_codec_id codec : kAttended)
    for (const uint32_t n_threads : {1u, 2u, 3u, 5u}) {
      check_case(
          {.codec = codec, .d_k = 128, .d_v = 128, .n_kv_heads = 2, .n_group = 4, .n_cells = 4097, .n_threads = n_threads});
      check_case({.codec = codec,
                  .n_kv_heads = 1,
                  .n_group = 3,
                  .n_queries = 2,
                  .n_cells = 4097,
                  .mask = Mask::kShared,
                  .n_threads = n_threads});
    }
}

TEST_F(Attention, GroupsHeadsAndQueries) {
  for (const kvt_codec_id codec : kAttended)
    for (const uint32_t n_group : {1u, 3u, 4u, 7u, 8u, 16u})
      for (const uint32_t n_kv_heads : {1u, 2u, 5u, 7u})
        for (const uint32_t n_queries : {1u, 2u, 5u, 33u}) {
          if (n_group * n_kv_heads * n_queries > 600) continue;
          check_case({.codec = codec,
                      .n_kv_heads = n_kv_heads,
                      .n_group = n_group,
                      .n_queries = n_queries,
                      .n_cells = 130,
                      .mask = n_kv_heads == 2 ? Mask::kPerHead : Mask::kShared,
                      .n_threads = 1 + n_queries % 3});
        }
}

TEST_F(Attention, Streams) {
  for (const kvt_codec_id codec : kAttended)
    for (const Mask mask : {Mask::kNone, Mask::kShared, Mask::kPerHead})
      for (const uint32_t n_threads : {1u, 2u, 5u})
        check_case({.codec = codec,
                    .d_k = 80,
                    .d_v = 112,
                    .n_streams = 3,
                    .n_kv_heads = 2,
                    .n_group = 3,
                    .n_queries = 2,
                    .n_cells = 193,
                    .mask = mask,
                    .n_threads = n_threads});
}

TEST_F(Attention, AnyAlignment) {
  for (const kvt_codec_id codec : kAttended)
    for (const uint32_t n_queries : {1u, 9u})
      check_case({.codec = codec,
                  .d_k = 128,
                  .d_v = 96,
                  .n_streams = 2,
                  .n_kv_heads = 3,
                  .n_group = 2,
                  .n_queries = n_queries,
                  .n_cells = 193,
                  .mask = Mask::kShared,
                  .n_threads = 2,
                  .unaligned = true});
}

TEST_F(Attention, OneMaskForAllStreams) {
  Problem problem({.n_streams = 3, .n_kv_heads = 2, .n_group = 2, .n_queries = 3, .n_cells = 100, .mask = Mask::kShared});
  problem.args().mask_stream_stride = 0;
  problem.check(problem.run(2));
}

TEST_F(Attention, SlopesSinksAndSoftcap) {
  for (const kvt_codec_id codec : kAttended)
    for (const bool slopes : {false, true})
      for (const bool sinks : {false, true})
        for (const float softcap : {0.0f, 1.5f, 50.0f})
          for (const Mask mask : {Mask::kNone, Mask::kPerHead})
            for (const uint32_t n_threads : {1u, 3u})
              check_case({.codec = codec,
                          .d_k = 128,
                          .d_v = 64,
                          .n_kv_heads = 3,
                          .n_group = 2,
                          .n_queries = 2,
                          .n_cells = 129,
                          .mask = mask,
                          .slopes = slopes,
                          .sinks = sinks,
                          .softcap = softcap,
                          .n_threads = n_threads});
}

// Sinks alone: every value is removed, so the row is zero, not NaN.
TEST_F(Attention, RowsWithoutCellsAreZero) {
  for (const kvt_codec_id codec : kAttended)
    for (const bool sinks : {false, true})
      for (const uint32_t n_threads : {1u, 2u, 5u}) {
        for (const uint32_t n_cells : {0u, 1u, 65u, 1000u}) {
          Problem problem({.codec = codec,
                           .n_kv_heads = 2,
                           .n_group = 4,
                           .n_queries = 2,
                           .n_cells = n_cells,
                           .mask = Mask::kShared,
                           .sinks = sinks});
          for (size_t query = 0; query < 2; ++query)
            for (size_t cell = 0; cell < n_cells; ++cell) problem.mask_at(0, 0, query, cell) = 0xFC00;
          const std::vector<float> out = problem.run(n_threads);
          problem.check(out);
        }
      }
}

// NaN norms in removed cells, in whole pages without a visible cell, and behind n_cells leave no trace.
TEST_F(Attention, RemovedCellsCannotPoison) {
  for (const kvt_codec_id codec : kAttended)
    for (const uint32_t n_threads : {1u, 2u, 3u}) {
      Problem problem({.codec = codec,
                       .d_k = 80,
                       .d_v = 80,
                       .n_kv_heads = 2,
                       .n_group = 3,
                       .n_queries = 2,
                       .n_cells = 260,
                       .mask = Mask::kShared});
      const auto remove = [&](size_t cell) {
        for (size_t query = 0; query < 2; ++query) problem.mask_at(0, 0, query, cell) = 0xFC00;
      };
      for (const size_t cell : {size_t{0}, size_t{17}, size_t{63}, size_t{200}, size_t{259}}) remove(cell);
      for (size_t cell = 64; cell < 128; ++cell) remove(cell);
      const std::vector<float> clean = problem.run(n_threads);
      problem.check(clean);
      for (const size_t cell : {size_t{0}, size_t{17}, size_t{63}, size_t{200}, size_t{259}}) problem.poison_cell(0, cell);
      for (size_t cell = 64; cell < 128; ++cell) problem.poison_cell(0, cell);
      for (size_t cell = 260; cell < 320; ++cell) problem.poison_cell(0, cell);
      const std::vector<float> poisoned = problem.run(n_threads);
      EXPECT_EQ(std::memcmp(clean.data(), poisoned.data(), clean.size() * sizeof(float)), 0) << problem.shape().name();
    }
}

// A cell that one query removes and another sees: its NaN reaches only those that see it, as in fp16.
TEST_F(Attention, NanCellReachesOnlyQueriesThatSeeIt) {
  for (const kvt_codec_id codec : kAttended) {
    Problem problem({.codec = codec, .n_group = 2, .n_queries = 2, .n_cells = 100, .mask = Mask::kShared});
    for (size_t cell = 0; cell < 100; ++cell)
      for (size_t query = 0; query < 2; ++query) problem.mask_at(0, 0, query, cell) = cell == 40 && query == 0 ? 0xFC00 : 0;
    const std::vector<float> clean = problem.run(1);
    problem.poison_cell(0, 40);
    const std::vector<float> out = problem.run(1);
    const size_t row = out.size() / 4;
    EXPECT_EQ(std::memcmp(out.data(), clean.data(), 2 * row * sizeof(float)), 0) << kvt_codec_name(codec);
    for (size_t i = 2 * row; i < 2 * row + 64; ++i) EXPECT_TRUE(std::isnan(out[i])) << kvt_codec_name(codec);
  }
}

// Finite "minus infinities" (the least half) and all cells at one mask value: softmax is invariant to a shift.
TEST_F(Attention, LeastFiniteMask) {
  for (const kvt_codec_id codec : kAttended) {
    Problem problem({.codec = codec, .n_group = 2, .n_queries = 3, .n_cells = 150, .mask = Mask::kShared});
    for (size_t cell = 0; cell < 150; ++cell) {
      problem.mask_at(0, 0, 0, cell) = cell < 100 ? 0xFBFF : 0;  // -65504
      problem.mask_at(0, 0, 1, cell) = cell % 2 ? 0xFBFF : 0;
      problem.mask_at(0, 0, 2, cell) = half_bits_exact(64);
    }
    problem.check(problem.run(1));
    problem.check(problem.run(2));
  }
}

// Sharp heads: one cell takes nearly all weight. The error of a score grows with the score, so only f16 keeps its bound; the
// others must stay finite and within the size of a value.
TEST_F(Attention, SharpScores) {
  for (const float deviation : {8.0f, 1000.0f}) {
    for (const kvt_codec_id codec : kAttended) {
      Problem problem(
          {.codec = codec, .n_kv_heads = 2, .n_group = 2, .n_queries = 2, .n_cells = 300, .score_deviation = deviation});
      const std::vector<float> out = problem.run(2);
      if (codec == KVT_CODEC_F16) problem.check(out);
      for (const float x : out) ASSERT_TRUE(std::isfinite(x));
    }
  }
}

// Scores of +-1e30 must not overflow anything.
TEST_F(Attention, ZeroAndHugeQueries) {
  for (const kvt_codec_id codec : kAttended) {
    Problem zero({.codec = codec, .n_group = 2, .n_cells = 100, .score_deviation = 0});
    zero.check(zero.run(1));
    Problem huge({.codec = codec, .n_group = 2, .n_cells = 100, .score_deviation = 1e30f});
    for (const float x : huge.run(1)) ASSERT_TRUE(std::isfinite(x));
  }
}

// All keys, values and rotated queries at the ends of their ranges, where integer sums are largest: code bits all ones give the
// highest level of every table, all zeros the lowest. A sink as large as the cells' sum halves the output, so a score that is
// cut off would show. Rounding of queries and weights: as in check.
TEST_F(Attention, ExtremeLevels) {
  constexpr uint32_t kCells = 150;
  for (const kvt_codec_id id : std::span(kAttended).subspan(1))  // f16 has no levels
    for (const uint32_t d : {64u, 128u, 256u})                   // without rest lines, whose bit 3 must be 0
      for (const uint8_t k_fill : {uint8_t{0x00}, uint8_t{0xFF}})
        for (const uint8_t v_fill : {uint8_t{0x00}, uint8_t{0xFF}})
          for (const double score : {-3.0, 3.0})
            for (const uint32_t n_group : {1u, 8u}) {
              const CodecPtr codec = make_codec(id, d, d);
              const auto pages_of = [&](kvt_side side, uint8_t fill) {
                const size_t page_bytes = kvt_page_bytes(codec.get(), side);
                const size_t norm_parts = id == KVT_CODEC_HYBRID && side == KVT_KEY ? 2 : 1;
                const bool is_byte = side == KVT_KEY && id == KVT_CODEC_K8V4;  // bit 7 must be 0
                std::vector<uint8_t> pages(pages_for(kCells) * page_bytes, is_byte ? fill & 0x7F : fill);
                for (size_t end = page_bytes; end <= pages.size(); end += page_bytes)
                  for (size_t i = 0; i < 64 * norm_parts; ++i) {
                    const uint16_t norm = i < 64 ? 0x3C00 : 0;  // 1, no residual
                    std::memcpy(pages.data() + end - 128 * norm_parts + 2 * i, &norm, 2);
                  }
                EXPECT_EQ(kvt_validate_pages(codec.get(), side, pages.data(), page_bytes, pages_for(kCells)), KVT_OK);
                return pages;
              };
              const std::vector<uint8_t> k = pages_of(KVT_KEY, k_fill), v = pages_of(KVT_VALUE, v_fill);
              const std::vector<float> key = decode_rows(codec.get(), KVT_KEY, k, 1, d);
              const std::vector<float> value = decode_rows(codec.get(), KVT_VALUE, v, 1, d);
              double square = 0, size = 0;
              for (const float x : key) square += static_cast<double>(x) * static_cast<double>(x);
              for (const float x : value) size += static_cast<double>(x) * static_cast<double>(x);
              std::vector<float> q(n_group * d), out(n_group * d);
              for (size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>(static_cast<double>(key[i % d]) * score / square);
              const std::vector<float> sinks(n_group, static_cast<float>(score + std::log(kCells)));
              kvt_attention a{};
              a.struct_size = sizeof a;
              a.n_streams = a.n_kv_heads = a.n_queries = 1;
              a.n_group = n_group;
              a.n_cells = kCells;
              a.k_pages = k.data();
              a.k_page_stride = kvt_page_bytes(codec.get(), KVT_KEY);
              a.v_pages = v.data();
              a.v_page_stride = kvt_page_bytes(codec.get(), KVT_VALUE);
              a.q = q.data();
              a.out = out.data();
              a.q_head_stride = a.out_head_stride = d * sizeof(float);
              a.sinks = sinks.data();
              a.scale = 1;
              ASSERT_EQ(kvt_attend(codec.get(), &a), KVT_OK);
              for (size_t g = 0; g < n_group; ++g) {
                double error = 0;
                for (size_t i = 0; i < d; ++i) {
                  const double e = static_cast<double>(out[g * d + i]) - 0.5 * static_cast<double>(value[i]);
                  error += e * e;
                }
                ASSERT_LE(std::sqrt(error / size), 0.03)
                    << kvt_codec_name(id) << " d " << d << " fills " << +k_fill << " " << +v_fill << " score " << score;
              }
            }
}

// The result depends neither on the order nor on the timing of the threads.
TEST_F(Attention, ThreadOrderDoesNotMatter) {
  for (const kvt_codec_id codec : kAttended)
    for (const uint32_t n_kv_heads : {1u, 3u, 17u})
      for (const uint32_t n_threads : {1u, 2u, 3u, 5u}) {
        Problem problem(
            {.codec = codec, .n_kv_heads = n_kv_heads, .n_group = 3, .n_cells = 700, .mask = Mask::kShared, .sinks = true});
        const std::vector<float> forward = problem.run(n_threads);
        problem.check(forward);
        const size_t bytes = forward.size() * sizeof(float);
        EXPECT_EQ(std::memcmp(forward.data(), problem.run(n_threads, true).data(), bytes), 0) << problem.shape().name();
        for (int repeat = 0; repeat < 3; ++repeat)
          EXPECT_EQ(std::memcmp(forward.data(), problem.run(n_threads, false, true).data(), bytes), 0)
              << problem.shape().name();
      }
}

// Many threads for few cells, more threads than pages, one workspace for several calls.
TEST_F(Attention, MoreThreadsThanWork) {
  for (const kvt_codec_id codec : kAttended)
    for (const uint32_t n_threads : {7u, 16u, 61u, 130u})
      for (const uint32_t n_cells : {1u, 64u, 65u, 500u})
        for (const uint32_t n_kv_heads : {1u, 19u})
          check_case({.codec = codec, .n_kv_heads = n_kv_heads, .n_group = 2, .n_cells = n_cells, .n_threads = n_threads});
}

TEST_F(Attention, WorkspaceIsReusable) {
  Problem problem({.n_kv_heads = 3, .n_group = 2, .n_cells = 1000});
  const std::vector<float> expected = problem.run(3);
  Workspace workspace(kvt_attend_workspace_bytes(problem.codec(), &problem.args(), 3));
  for (int repeat = 0; repeat < 3; ++repeat) {
    std::fill(problem.out().begin(), problem.out().end(), 0.0f);
    for (uint32_t thread = 0; thread < 3; ++thread)
      ASSERT_EQ(kvt_attend_thread(problem.codec(), &problem.args(), workspace.get(), thread, 3), KVT_OK);
    EXPECT_TRUE(workspace.is_clean());
    for (size_t row = 0; row < 6; ++row)
      EXPECT_EQ(std::memcmp(problem.out().data() + row * 67, expected.data() + row * 67, 64 * sizeof(float)), 0);
  }
}

// Between thread counts the weights of a page are the same up to their last bit before rounding to 7 bits, so a few may fall on
// the other side: one step of 1/127 each (docs/algorithm.md section 7).
TEST_F(Attention, ThreadCountsAgreeWithinRounding) {
  for (const kvt_codec_id codec : kAttended) {
    Problem problem({.codec = codec,
                     .d_k = 128,
                     .d_v = 128,
                     .n_kv_heads = 2,
                     .n_group = 4,
                     .n_queries = 2,
                     .n_cells = 1500,
                     .mask = Mask::kShared,
                     .sinks = true});
    const std::vector<float> one = problem.run(1);
    for (const uint32_t n_threads : {2u, 3u, 5u})
      EXPECT_LT(problem.difference(one, problem.run(n_threads)), codec == KVT_CODEC_F16 ? 1e-5 : 1e-2) << n_threads;
  }
}

}  // namespace
}  // namespace kvt_test
