#include "bench_kernel.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <tuple>

#include "api/codec_object.h"
#include "bench_support.h"
#include "child_process.h"
#include "cli_error.h"
#include "cpu/kernel_select.h"
#include "ggml_attention.h"
#include "host_finder.h"
#include "terminal_output.h"

namespace kvt::cli {

namespace {

// Distinct pages of synthetic rows; a prime, so that heads and chunks do not fall into step with it.
constexpr unsigned kDistinctPages = 37;
constexpr double kSampleSeconds = 2e-3;    // short calls are repeated to fill this
constexpr double kQuickSeconds = 24;       // for the rounds; memory and encoders come on top
constexpr double kLongRunSeconds = 50e-3;  // the first such run counts: what it pays once is small
constexpr double kSettleSeconds = 20e-3;   // until ggml's threads sleep
constexpr double kWeakBaseline = 0.9;      // share of stream
// Outputs of two candidates may differ by this share of their norm: codes of 3 bits reach 0.2 on random values, while a kernel
// that does other work than the rest is beyond 1.
constexpr double kLargestDifference = 0.5;
constexpr unsigned kManyQueries = 9;  // from here on it is prefill

// Rows of random numbers that all candidates hold: token t of head h is row_index(t, h).
class SyntheticRows {
 public:
  explicit SyntheticRows(unsigned head_dim) : head_dim_(head_dim), keys_(n_rows() * head_dim), values_(n_rows() * head_dim) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (float& x : keys_) x = normal(generator);
    for (float& x : values_) x = normal(generator);
  }
  static constexpr std::size_t n_rows() { return std::size_t{kDistinctPages} * kPageTokens; }
  static unsigned distinct_page(unsigned page, unsigned head) { return (page + 5 * head) % kDistinctPages; }
  const float* row(bool is_value, std::size_t index) const { return (is_value ? values_ : keys_).data() + index * head_dim_; }
  const float* row_of(bool is_value, unsigned token, unsigned head) const {
    return row(is_value, std::size_t{distinct_page(token / kPageTokens, head)} * kPageTokens + token % kPageTokens);
  }

 private:
  std::size_t head_dim_;
  std::vector<float> keys_, values_;
};

// Pages of one side of a codec for all heads.
HugeBuffer make_pages(const SideLayout& layout, const cpu::KernelTable& kernels, const SyntheticRows& rows, unsigned n_pages,
                      unsigned n_heads, WorkerPool& pool) {
  std::vector<std::uint8_t> distinct(kDistinctPages * layout.page_bytes);
  for (std::size_t i = 0; i < SyntheticRows::n_rows(); ++i) {
    kernels.encode_row(layout, rows.row(layout.side == KVT_VALUE, i), distinct.data() + i / kPageTokens * layout.page_bytes,
                       static_cast<unsigned>(i % kPageTokens));
  }
  HugeBuffer pages(std::size_t{n_pages} * n_heads * layout.page_bytes, pool);
  std::uint8_t* to = pages.data();
  for (unsigned head = 0; head < n_heads; ++head) {
    for (unsigned page = 0; page < n_pages; ++page, to += layout.page_bytes) {
      std::memcpy(to, distinct.data() + SyntheticRows::distinct_page(page, head) * layout.page_bytes, layout.page_bytes);
    }
  }
  return pages;
}

struct CodecCache {
  kvt_codec_id id;
  SideLayout key, value;
  HugeBuffer k_pages, v_pages;
  double bytes_per_token_head() const { return static_cast<double>(key.page_bytes + value.page_bytes) / kPageTokens; }
};

// Queries and results, for the largest shape of a run.
struct Rows {
  HugeBuffer q, out;
};

struct Shape {
  unsigned head_dim, n_kv_heads, n_queries, n_tokens, group, threads;
};

struct Candidate {
  std::string codec, isa;
  double bytes_per_token_head = 0;
  std::function<void()> run;
  bool is_ggml = false;
  unsigned n_repeats = 1;
  std::vector<double> seconds;
};

// One call of our attention, shared by the pool's threads.
class OurAttention {
 public:
  OurAttention(const CodecCache& cache, const cpu::KernelTable& kernels, const Shape& shape, const Rows& rows, WorkerPool& pool)
      : codec_{cache.id, cache.key, cache.value, &kernels}, pool_(pool) {
    const std::size_t n_pages = (shape.n_tokens + kPageTokens - 1) / kPageTokens;
    const std::size_t n_heads = std::size_t{shape.n_kv_heads} * shape.group, row_bytes = shape.head_dim * sizeof(float);
    attention_.struct_size = sizeof attention_;
    attention_.n_streams = 1;
    attention_.n_kv_heads = shape.n_kv_heads;
    attention_.n_group = shape.group;
    attention_.n_queries = shape.n_queries;
    attention_.n_cells = shape.n_tokens;
    attention_.k_pages = cache.k_pages.data();
    attention_.k_page_stride = cache.key.page_bytes;
    attention_.k_head_stride = cache.key.page_bytes * n_pages;
    attention_.v_pages = cache.v_pages.data();
    attention_.v_page_stride = cache.value.page_bytes;
    attention_.v_head_stride = cache.value.page_bytes * n_pages;
    attention_.q = rows.q.as<float>();
    attention_.q_head_stride = row_bytes;
    attention_.q_query_stride = row_bytes * n_heads;
    attention_.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    attention_.out = rows.out.as<float>();
    attention_.out_head_stride = row_bytes;
    attention_.out_query_stride = row_bytes * n_heads;
    workspace_ = std::make_unique<HugeBuffer>(kvt_attend_workspace_bytes(&codec_, &attention_, pool.size()), pool);
  }

  void run() {
    pool_.run([this](unsigned thread) { kvt_attend_thread(&codec_, &attention_, workspace_->data(), thread, pool_.size()); });
  }

 private:
  kvt_codec codec_;
  kvt_attention attention_{};
  WorkerPool& pool_;
  std::unique_ptr<HugeBuffer> workspace_;
};

void stop_if_interrupted() {
  if (received_signal() != 0) throw CliError(kExitFailure, "interrupted", "by a signal", "");
}

double relative_difference(const float* a, const float* b, std::size_t n) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < n; ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return std::sqrt(difference / norm);
}

class KernelBench {
 public:
  explicit KernelBench(const KernelBenchOptions& options)
      : options_(options), thread_counts_(parse_threads()), token_counts_(options.token_counts), rows_(options.head_dim) {
    if (!is_supported_head_dim(options_.head_dim)) {
      throw CliError(kExitUsage, "--head-dim " + std::to_string(options_.head_dim), "unknown",
                     "it is 64, 80, 96, 112, 128, 192 or 256");
    }
    if (token_counts_.empty()) token_counts_ = {options_.n_queries >= kManyQueries ? 4096u : 65536u};
    find_codecs();
    find_isas();
    if (options_.no_ggml) {
      result_.why_no_ggml = "--no-ggml";
    } else {
      find_ggml();
    }
    for (const unsigned n : thread_counts_) pools_.push_back(std::make_unique<WorkerPool>(n));
    stream_ = std::make_unique<StreamTest>(*pools_.back());
  }

  KernelBenchResult run() {
    deadline_ = options_.quick ? seconds_now() + kQuickSeconds : std::numeric_limits<double>::infinity();
    n_shapes_left_ = token_counts_.size() * options_.groups.size() * thread_counts_.size();
    measure_encoders();
    for (const unsigned n_tokens : token_counts_) measure_tokens(n_tokens);
    status_.clear();
    finish_rows();
    result_.waited_share = waited_seconds_ / measured_seconds_;
    return std::move(result_);
  }

 private:
  std::vector<unsigned> parse_threads() const {
    std::vector<unsigned> counts;
    const unsigned all = usable_cores();
    for (const std::string& text : options_.threads) {
      char* end = nullptr;
      const unsigned long n = text == "all" ? all : std::strtoul(text.c_str(), &end, 10);
      if ((end != nullptr && *end != '\0') || n == 0 || n > 4096) {
        throw CliError(kExitUsage, "--threads " + text, "not a number of threads", "give numbers or `all`: --threads 1,all");
      }
      counts.push_back(static_cast<unsigned>(n));
    }
    if (counts.empty()) counts = {1, all};
    std::sort(counts.begin(), counts.end());
    counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
    return counts;
  }

  // f16 is always there, and first: the others are compared with it.
  void find_codecs() {
    codecs_ = {KVT_CODEC_F16};
    for (const std::string& name : options_.codecs) {
      check_codec_name(name);
      kvt_codec_id id;
      if (kvt_codec_from_name(name.c_str(), &id) == KVT_OK && std::find(codecs_.begin(), codecs_.end(), id) == codecs_.end()) {
        codecs_.push_back(id);
      }
    }
  }

  void find_isas() {
    for (const std::string& name : options_.isas) {
      const cpu::KernelTable* table = cpu::find_kernels(name.c_str());
      if (table == nullptr) {
        throw CliError(kExitFailure, "kernels '" + name + "'", "this machine or build lacks them",
                       "leave out --isa to take all that it has");
      }
      tables_.push_back(table);
    }
    if (!tables_.empty()) return;
    for (const char* name : {"avx512", "avxvnni", "avx2", "neon"}) {
      if (const cpu::KernelTable* table = cpu::find_kernels(name)) tables_.push_back(table);
    }
    if (tables_.empty()) tables_.push_back(cpu::find_kernels("scalar"));
  }

  void find_ggml() {
    try {
      const Host host = find_host(options_.common);
      ggml_ = load_ggml(host.server.parent_path(), &result_.why_no_ggml);
      if (ggml_ != nullptr) result_.ggml_version = ggml_library_version(*ggml_);
    } catch (const CliError& error) {
      if (!options_.common.host_folder.empty()) throw;
      result_.why_no_ggml = error.what();
    }
  }

  void measure_encoders() {
    struct Encoder {
      EncodeRow row;
      SideLayout layout;
      const cpu::KernelTable* table;
      std::vector<double> seconds;
    };
    std::vector<Encoder> encoders;
    for (const cpu::KernelTable* table : tables_) {
      for (const kvt_codec_id id : codecs_) {
        for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
          encoders.push_back({{kvt_codec_name(id), table->name, side == KVT_KEY ? "K" : "V", 0},
                              make_side_layout(id, side, options_.head_dim),
                              table,
                              {}});
        }
      }
    }
    std::size_t largest = 0;
    for (const Encoder& e : encoders) largest = std::max(largest, e.layout.page_bytes);
    const HugeBuffer page(largest, *pools_.front());
    const unsigned n_rounds = 5, n_rows = 64 * 16;
    for (unsigned round = 0; round < n_rounds; ++round) {
      for (Encoder& e : encoders) {
        stop_if_interrupted();
        status_.show(fmt::format("encoders: round {} of {}", round + 1, n_rounds));
        const double start = seconds_now();
        for (unsigned i = 0; i < n_rows; ++i) e.table->encode_row(e.layout, rows_.row(false, i), page.data(), i % kPageTokens);
        e.seconds.push_back(seconds_now() - start);
      }
    }
    for (Encoder& e : encoders) {
      e.row.ns_per_vector = median(e.seconds) / n_rows * 1e9;
      result_.encode_rows.push_back(e.row);
    }
  }

  void measure_tokens(unsigned n_tokens) {
    status_.show(fmt::format("{} tokens: filling the caches", n_tokens));
    WorkerPool& widest = *pools_.back();
    const unsigned n_pages = (n_tokens + kPageTokens - 1) / kPageTokens;
    std::vector<CodecCache> caches;
    for (const kvt_codec_id id : codecs_) {
      const SideLayout key = make_side_layout(id, KVT_KEY, options_.head_dim),
                       value = make_side_layout(id, KVT_VALUE, options_.head_dim);
      caches.push_back({id, key, value, make_pages(key, *tables_.front(), rows_, n_pages, options_.n_kv_heads, widest),
                        make_pages(value, *tables_.front(), rows_, n_pages, options_.n_kv_heads, widest)});
      stop_if_interrupted();
    }
    std::vector<GgmlCache> ggml_caches;
    if (ggml_ != nullptr) {
      const GgmlLayout layout = options_.ggml_layout == "token-major" ? GgmlLayout::kTokenMajor : GgmlLayout::kHeadMajor;
      for (const GgmlType type : {GgmlType::kF16, GgmlType::kQ8_0, GgmlType::kQ4_0}) {
        if (options_.head_dim % 32 != 0 && type != GgmlType::kF16) continue;  // its blocks hold 32 values
        ggml_caches.emplace_back(
            *ggml_, type, layout, GgmlAttentionShape{options_.head_dim, options_.n_kv_heads, 1, 1, n_tokens},
            [this](bool is_value, unsigned token, unsigned head) { return rows_.row_of(is_value, token, head); }, widest);
        stop_if_interrupted();
      }
    }
    const unsigned widest_group = *std::max_element(options_.groups.begin(), options_.groups.end());
    const std::size_t row_bytes =
        std::size_t{options_.n_queries} * options_.n_kv_heads * widest_group * options_.head_dim * sizeof(float);
    const Rows rows{HugeBuffer(row_bytes, widest), HugeBuffer(row_bytes, widest)};
    std::mt19937 generator(2);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < row_bytes / sizeof(float); ++i) rows.q.as<float>()[i] = normal(generator);

    for (const auto& pool : pools_) {
      for (const unsigned group : options_.groups) {
        const Shape shape{options_.head_dim, options_.n_kv_heads, options_.n_queries, n_tokens, group, pool->size()};
        measure_shape(shape, caches, ggml_caches, rows, *pool);
      }
    }
  }

  void measure_shape(const Shape& shape, const std::vector<CodecCache>& caches, const std::vector<GgmlCache>& ggml_caches,
                     const Rows& rows, WorkerPool& pool) {
    std::vector<Candidate> candidates;
    for (const cpu::KernelTable* table : tables_) {
      for (const CodecCache& cache : caches) {
        Candidate c{kvt_codec_name(cache.id), table->name, cache.bytes_per_token_head(), {}, false, 1, {}};
        c.run = [call = std::make_shared<OurAttention>(cache, *table, shape, rows, pool)] { call->run(); };
        candidates.push_back(std::move(c));
      }
    }
    for (const GgmlCache& cache : ggml_caches) {
      Candidate c{std::string("ggml ") + ggml_type_label(cache.type()),
                  "",
                  static_cast<double>(cache.bytes_per_token_head()),
                  {},
                  true,
                  1,
                  {}};
      const GgmlAttentionShape same{shape.head_dim, shape.n_kv_heads, shape.group, shape.n_queries, shape.n_tokens};
      c.run = [call = std::make_shared<GgmlAttention>(*ggml_, cache, same, rows.q, rows.out, shape.threads)] { call->run(); };
      candidates.push_back(std::move(c));
    }
    warm_up(shape, candidates, rows);
    const double stream = measure_rounds(shape, candidates, pool);
    add_rows(shape, candidates, stream);
  }

  // The first run of each: fills what is lazy, tells how often to repeat, and shows that all compute the same.
  void warm_up(const Shape& shape, std::vector<Candidate>& candidates, const Rows& rows) {
    const std::size_t n = std::size_t{shape.n_queries} * shape.n_kv_heads * shape.group * shape.head_dim;
    float* const out = rows.out.as<float>();
    std::vector<float> expected;
    for (Candidate& c : candidates) {
      stop_if_interrupted();
      std::fill_n(out, n, std::numeric_limits<float>::quiet_NaN());
      const double start = seconds_now();
      c.run();
      const double used = seconds_now() - start;
      c.n_repeats = static_cast<unsigned>(std::clamp(kSampleSeconds / used, 1.0, 1000.0));
      if (used > kLongRunSeconds) c.seconds.push_back(used);
      if (expected.empty()) expected.assign(out, out + n);
      const double difference = relative_difference(out, expected.data(), n);
      if (!(difference < kLargestDifference)) {
        throw CliError(kExitFailure, "bench kernel",
                       fmt::format("{} {} differs from our f16 by {:.3f} at G={}", c.codec, c.isa, difference, shape.group),
                       "the figures would compare different work; please report this");
      }
      settle(shape, c);
    }
  }

  static void settle(const Shape& shape, const Candidate& c) {
    if (c.is_ggml && shape.threads > 1) std::this_thread::sleep_for(std::chrono::duration<double>(kSettleSeconds));
  }

  // Returns the bytes per second of plain reads, the best of all rounds.
  double measure_rounds(const Shape& shape, std::vector<Candidate>& candidates, WorkerPool& pool) {
    const unsigned wanted = options_.n_rounds != 0 ? options_.n_rounds : options_.quick ? 5 : 15;
    const double start = seconds_now(), slice = (deadline_ - start) / static_cast<double>(n_shapes_left_);
    --n_shapes_left_;
    double stream = 0;
    for (unsigned round = 0; round < wanted; ++round) {
      const double so_far = seconds_now() - start;
      if (round > 0 && so_far + so_far / round > slice) break;
      status_.show(fmt::format("{} tokens, G={}, {} threads: round {} of {}", shape.n_tokens, shape.group, shape.threads,
                               round + 1, wanted));
      stream = std::max(stream, stream_->run(pool));
      // Each round begins with another candidate, so that none always follows the same one.
      for (std::size_t i = 0; i < candidates.size(); ++i) {
        stop_if_interrupted();
        Candidate& c = candidates[(i + round) % candidates.size()];
        const double waited = seconds_waited_for_core(), begin = seconds_now();
        if (begin - start > slice && !c.seconds.empty()) continue;
        for (unsigned repeat = 0; repeat < c.n_repeats; ++repeat) c.run();
        const double used = seconds_now() - begin;
        c.seconds.push_back(used / c.n_repeats);
        measured_seconds_ += used;
        waited_seconds_ += seconds_waited_for_core() - waited;
        settle(shape, c);
      }
    }
    for (const Candidate& c : candidates) {
      const auto n = static_cast<unsigned>(c.seconds.size());
      result_.n_rounds = result_.n_rounds == 0 ? n : std::min(result_.n_rounds, n);
    }
    return stream;
  }

  void add_rows(const Shape& shape, const std::vector<Candidate>& candidates, double stream) {
    const double token_heads = static_cast<double>(shape.n_tokens) * shape.n_kv_heads;
    std::map<std::string, double> f16_seconds, ggml_seconds;
    for (const Candidate& c : candidates) {
      if (c.is_ggml) ggml_seconds[c.codec] = median(c.seconds);
      if (c.codec == kvt_codec_name(KVT_CODEC_F16)) f16_seconds[c.isa] = median(c.seconds);
    }
    for (const Candidate& c : candidates) {
      const double seconds = median(c.seconds);
      KernelRow row{};
      row.codec = c.codec;
      row.isa = c.isa;
      row.head_dim = shape.head_dim;
      row.group = shape.group;
      row.n_tokens = shape.n_tokens;
      row.threads = shape.threads;
      row.ns_per_token_head = seconds / token_heads * 1e9;
      row.gb_per_s = c.bytes_per_token_head * token_heads / seconds / 1e9;
      row.best_gb_per_s = c.bytes_per_token_head * token_heads / *std::min_element(c.seconds.begin(), c.seconds.end()) / 1e9;
      row.spread = relative_spread(c.seconds);
      row.fits_cache = c.bytes_per_token_head * token_heads < static_cast<double>(last_level_cache_bytes());
      if (!c.is_ggml) {
        row.ratio_f16 = f16_seconds[c.isa] / seconds;
        for (std::size_t i = 0; i < kGgmlTypes.size(); ++i) {
          if (const auto found = ggml_seconds.find(std::string("ggml ") + kGgmlTypes[i]); found != ggml_seconds.end()) {
            row.ratio_ggml[i] = found->second / seconds;
          }
        }
      }
      (c.is_ggml ? result_.ggml_rows : result_.rows).push_back(row);
    }
    const auto known = std::find_if(result_.stream_rows.begin(), result_.stream_rows.end(),
                                    [&](const StreamRow& row) { return row.threads == shape.threads; });
    if (known == result_.stream_rows.end()) {
      result_.stream_rows.push_back({shape.threads, stream / 1e9});
    } else {
      known->gb_per_s = std::max(known->gb_per_s, stream / 1e9);
    }
  }

  // Shares: the best round over the best stream figure of the run. Then the verdict on each baseline.
  void finish_rows() {
    std::map<unsigned, double> stream;
    for (const StreamRow& row : result_.stream_rows) stream[row.threads] = row.gb_per_s;
    using Key = std::tuple<std::string, unsigned, unsigned>;
    std::map<Key, double> f16_share;
    for (std::vector<KernelRow>* rows : {&result_.rows, &result_.ggml_rows}) {
      for (KernelRow& row : *rows) row.share_of_stream = row.best_gb_per_s / stream[row.threads];
    }
    for (const KernelRow& row : result_.rows) {
      if (row.codec == kvt_codec_name(KVT_CODEC_F16) && row.group == 1)
        f16_share[{row.isa, row.threads, row.n_tokens}] = row.share_of_stream;
    }
    for (KernelRow& row : result_.rows) {
      const auto found = f16_share.find({row.isa, row.threads, row.n_tokens});
      if (found == f16_share.end() || options_.n_queries > 1) continue;
      row.baseline = found->second >= kWeakBaseline ? Baseline::kGood : Baseline::kWeak;
    }
  }

  const KernelBenchOptions& options_;
  const std::vector<unsigned> thread_counts_;  // ascending
  std::vector<unsigned> token_counts_;
  const SyntheticRows rows_;
  std::vector<kvt_codec_id> codecs_;
  std::vector<const cpu::KernelTable*> tables_;
  std::vector<std::unique_ptr<WorkerPool>> pools_;  // one for each of thread_counts_
  std::unique_ptr<StreamTest> stream_;
  std::shared_ptr<const GgmlLibrary> ggml_;
  StatusLine status_;
  double deadline_ = 0;
  std::size_t n_shapes_left_ = 0;
  double measured_seconds_ = 0, waited_seconds_ = 0;
  KernelBenchResult result_;
};

}  // namespace

KernelBenchResult bench_kernel(const KernelBenchOptions& options) { return KernelBench(options).run(); }

}  // namespace kvt::cli
