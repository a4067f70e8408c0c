// What a server does to a cache, through the host's own libllama: sequences side by side, copied, removed and kept, cells written in any
// order, shifted positions, saved and restored states. TEST_GGML_DIR, TEST_PLUGIN, TEST_MODEL as elsewhere; KVTURBO_CODEC: the codec.
//
// Each test makes a sequence in a plain way and in an involved one, and compares the logits of the same 16 continuing tokens. With f16 the
// plain way is stock's, on the CPU's own cache; with other codecs it is ours. The model has f16 weights (plugin_dequantize.cc says why):
// there sums in another order move logits little.
#include <gtest/gtest.h>
#include <llama.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace {

using Tokens = std::vector<llama_token>;
using Logits = std::vector<std::vector<float>>;  // of each step

constexpr size_t kContinued = 16;
// Largest difference of two logits that sums in another order explain; times codec_noise(): a key whose last bit differs may get another
// code, and what the codec loses is drawn anew.
constexpr double kAnyOrder = 0.1;
// The same for codes instead of exact rows: after a rollback of more tokens than are kept beyond a window.
constexpr double kCodesForRows = 0.8;

bool is_f16() {
  const char* codec = std::getenv("KVTURBO_CODEC");
  return codec != nullptr && std::strcmp(codec, "f16") == 0;
}

// Measured with the codecs that lose more than k4v3 (docs/reliability.md, Sequences and states).
double codec_noise() {
  const std::string codec = std::getenv("KVTURBO_CODEC") ? std::getenv("KVTURBO_CODEC") : "";
  return codec.starts_with("k2") ? 6 : codec.starts_with("k3") || codec == "hybrid" ? 3 : 1;
}

// The model, once on the plug-in's device and once on the CPU alone.
llama_model* model_on(bool ours) {
  static const auto load = [](bool on_plugin) {
    static const bool is_initialised = [] {
      llama_log_set([](ggml_log_level level, const char* text, void*) { if (level == GGML_LOG_LEVEL_ERROR && std::getenv("TEST_VERBOSE")) std::fputs(text, stderr); }, nullptr);
      ggml_backend_load_all_from_path(std::getenv("TEST_GGML_DIR"));
      if (ggml_backend_load(std::getenv("TEST_PLUGIN")) == nullptr) std::abort();
      llama_backend_init();
      return true;
    }();
    (void)is_initialised;
    static ggml_backend_dev_t devices[2] = {ggml_backend_dev_by_name("KVTURBO0"), nullptr};
    llama_model_params params = llama_model_default_params();
    params.devices = on_plugin ? devices : devices + 1;
    params.n_gpu_layers = on_plugin ? 999 : 0;
    return llama_model_load_from_file(std::getenv("TEST_MODEL"), params);
  };
  static llama_model* const models[2] = {load(false), load(true)};
  return models[ours];
}

Tokens tokens_of(const std::string& text) {
  const llama_vocab* vocab = llama_model_get_vocab(model_on(true));
  Tokens tokens(text.size() + 8);
  tokens.resize(static_cast<size_t>(llama_tokenize(vocab, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                                                   static_cast<int32_t>(tokens.size()), true, false)));
  return tokens;
}

struct CacheSetup {
  bool ours = true, is_unified = true;
  uint32_t n_cells = 768, n_sequences = 4;
};

class Cache {
 public:
  explicit Cache(const CacheSetup& setup) : Cache(setup, {}) {}
  Cache(const CacheSetup& setup, const Tokens& taught) {
    llama_context_params params = llama_context_default_params();
    params.n_seq_max = setup.n_sequences;
    params.n_ctx = setup.is_unified ? setup.n_cells : setup.n_cells * setup.n_sequences;
    params.n_batch = params.n_ubatch = 512;
    params.kv_unified = setup.is_unified;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.n_threads = params.n_threads_batch = 2;
    context_.reset(llama_init_from_model(model_on(setup.ours), params));
    if (context_ == nullptr) std::abort();
    // Key conditioning is learnt from the first 256 tokens: all caches get the same ones.
    if (!taught.empty()) {
      add(0, taught);
      remove(0, 0, -1);
    }
  }

  llama_context* get() { return context_.get(); }
  llama_memory_t memory() { return llama_get_memory(get()); }

  // Computes tokens of a sequence, from position `at` on (default: after its last).
  void add(llama_seq_id sequence, const Tokens& tokens, llama_pos at = -1) { add_many({{sequence, tokens, at}}); }
  struct Part {
    llama_seq_id sequence;
    Tokens tokens;
    llama_pos at = -1;
  };
  // Tokens of several sequences in one batch, in turns.
  void add_many(const std::vector<Part>& parts) {
    size_t n = 0, longest = 0;
    for (const Part& p : parts) n += p.tokens.size(), longest = std::max(longest, p.tokens.size());
    llama_batch batch = llama_batch_init(static_cast<int32_t>(n), 0, 1);
    std::vector<llama_pos> next;
    for (const Part& p : parts) next.push_back(p.at >= 0 ? p.at : llama_memory_seq_pos_max(memory(), p.sequence) + 1);
    last_output_.assign(16, -1);
    for (size_t i = 0; i < longest; ++i) {
      for (size_t s = 0; s < parts.size(); ++s) {
        if (i >= parts[s].tokens.size()) continue;
        const auto at = static_cast<size_t>(batch.n_tokens++);
        batch.token[at] = parts[s].tokens[i];
        batch.pos[at] = next[s]++;
        batch.n_seq_id[at] = 1;
        batch.seq_id[at][0] = parts[s].sequence;
        batch.logits[at] = i + 1 == parts[s].tokens.size();
        if (batch.logits[at]) last_output_[static_cast<size_t>(parts[s].sequence)] = static_cast<int32_t>(at);
      }
    }
    EXPECT_EQ(llama_decode(get(), batch), 0);
    llama_batch_free(batch);
  }
  void remove(llama_seq_id sequence, llama_pos begin, llama_pos end) { EXPECT_TRUE(llama_memory_seq_rm(memory(), sequence, begin, end)); }

  std::vector<float> logits(llama_seq_id sequence) {
    const float* row = llama_get_logits_ith(get(), last_output_[static_cast<size_t>(sequence)]);
    return {row, row + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(get())))};
  }
  // Logits after each of the tokens, computed one by one.
  Logits go_on(llama_seq_id sequence, const Tokens& tokens) {
    Logits all;
    for (const llama_token t : tokens) {
      add(sequence, {t});
      all.push_back(logits(sequence));
    }
    return all;
  }

  std::vector<uint8_t> save(llama_seq_id sequence) {
    std::vector<uint8_t> bytes(llama_state_seq_get_size(get(), sequence));
    EXPECT_EQ(llama_state_seq_get_data(get(), bytes.data(), bytes.size(), sequence), bytes.size());
    return bytes;
  }
  bool restore(llama_seq_id sequence, const std::vector<uint8_t>& bytes) {
    return llama_state_seq_set_data(get(), bytes.data(), bytes.size(), sequence) == bytes.size();
  }

 private:
  struct Free {
    void operator()(llama_context* c) const { llama_free(c); }
  };
  std::unique_ptr<llama_context, Free> context_;
  std::vector<int32_t> last_output_;
};

double largest_difference(const Logits& a, const Logits& b) {
  double largest = 0;
  EXPECT_EQ(a.size(), b.size());
  for (size_t s = 0; s < a.size(); ++s) {
    for (size_t i = 0; i < a[s].size(); ++i) {
      const double difference = std::fabs(static_cast<double>(a[s][i]) - static_cast<double>(b[s][i]));
      if (!(difference <= largest)) largest = difference;  // a NaN too
    }
  }
  return largest;
}

// Greedy tokens agree, or logits were so close that the order of sums decides.
void expect_same_tokens(const Logits& a, const Logits& b) {
  for (size_t s = 0; s < a.size(); ++s) {
    const auto top_a = std::max_element(a[s].begin(), a[s].end()) - a[s].begin();
    const auto top_b = std::max_element(b[s].begin(), b[s].end()) - b[s].begin();
    EXPECT_LE(a[s][static_cast<size_t>(top_a)] - a[s][static_cast<size_t>(top_b)], kAnyOrder * codec_noise()) << "step " << s;
  }
}

const std::string kTeach = [] {
  std::ifstream file(std::string(std::getenv("TEST_SOURCE") ? std::getenv("TEST_SOURCE") : ".") + "/LICENSE");
  std::string text(1500, ' ');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  return text;
}();
const Tokens& teach() {
  static const Tokens tokens = tokens_of(kTeach);
  return tokens;
}
// Another text of more than 256 tokens.
const Tokens& teach_otherwise() {
  static const Tokens tokens = [] {
    std::string numbers;
    for (int i = 0; i < 120; ++i) numbers += std::to_string(i * 37) + ", ";
    Tokens t = tokens_of(numbers);
    t.resize(300);
    return t;
  }();
  return tokens;
}
const Tokens& first() {
  static const Tokens tokens = tokens_of(
      "The river rises in the hills north of the town, runs through three villages and a long valley of orchards, and reaches the sea "
      "near the old harbour. In spring it carries snow water and is too cold to swim in. In summer the farmers lead it into ditches "
      "between the trees, so that little of it is left at the mill. The mill has not worked since the war, but its wheel still turns when");
  return tokens;
}
const Tokens& second() {
  static const Tokens tokens = tokens_of(
      "To make bread you need flour, water, salt and yeast. Mix them in a large bowl and knead the dough for ten minutes. Let it rest in a warm "
      "place until it has doubled in size, shape it, and let it rest again. Heat the oven as far as it goes. Bake the bread for forty");
  return tokens;
}
const Tokens& continued() {
  static const Tokens tokens = [] {
    Tokens t = tokens_of(" it rains for days and the water comes up to the door of the house");
    t.resize(kContinued);
    return t;
  }();
  return tokens;
}

// The plain way: the sequence alone in a cache; f16: stock's.
Logits plain(const Tokens& tokens, const CacheSetup& setup = {}) {
  CacheSetup s = setup;
  s.ours = !is_f16();
  Cache cache(s, teach());
  cache.add(0, tokens);
  return cache.go_on(0, continued());
}
const Logits& plain_first() {
  static const Logits logits = plain(first());
  return logits;
}
const Logits& plain_second() {
  static const Logits logits = plain(second());
  return logits;
}

void expect_close(const char* what, const Logits& a, const Logits& b, double bound = kAnyOrder) {
  const double difference = largest_difference(a, b);
  std::printf("%s: largest difference of a logit %.3g\n", what, difference);
  EXPECT_LE(difference, bound * codec_noise()) << what;
  expect_same_tokens(a, b);
}

class Sequences : public testing::TestWithParam<bool> {
 protected:
  CacheSetup setup() const { return {.is_unified = GetParam()}; }
};
INSTANTIATE_TEST_SUITE_P(Caches, Sequences, testing::Bool(), [](const testing::TestParamInfo<bool>& tested) { return tested.param ? "Unified" : "Streams"; });

TEST_P(Sequences, Alone) {
  Cache cache(setup(), teach());
  cache.add(0, first());
  expect_close("alone", cache.go_on(0, continued()), plain_first());
}

TEST_P(Sequences, SideBySide) {
  Cache cache(setup(), teach());
  cache.add_many({{1, first()}, {2, second()}});
  Logits a, b;
  for (const llama_token t : continued()) {
    cache.add_many({{2, {t}}, {1, {t}}});
    a.push_back(cache.logits(1));
    b.push_back(cache.logits(2));
  }
  expect_close("first", a, plain_first());
  expect_close("second", b, plain_second());
}

TEST_P(Sequences, CopiedPrefix) {
  Cache cache(setup(), teach());
  cache.add(0, first());
  llama_memory_seq_cp(cache.memory(), 0, 1, -1, -1);
  const Logits original = cache.go_on(0, continued());
  expect_close("original", original, plain_first());
  expect_close("copy", cache.go_on(1, continued()), original, kCodesForRows);  // the original is 16 tokens ahead
  // The original goes; the copy stays.
  llama_memory_seq_cp(cache.memory(), 1, 3, -1, -1);
  llama_memory_seq_keep(cache.memory(), 3);
  cache.add(2, second());
  expect_close("beside it", cache.go_on(2, continued()), plain_second());
  cache.remove(3, static_cast<llama_pos>(first().size()), -1);
  expect_close("kept copy", cache.go_on(3, continued()), original, kCodesForRows);
}

TEST_P(Sequences, RolledBack) {
  Cache cache(setup(), teach());
  cache.add(0, first());
  for (int draft = 1; draft <= 5; ++draft) {  // rejected drafts
    cache.add(0, Tokens(second().begin(), second().begin() + draft));
    cache.remove(0, static_cast<llama_pos>(first().size()), -1);
  }
  expect_close("after drafts", cache.go_on(0, continued()), plain_first());
  cache.remove(0, 20, -1);
  cache.add(0, Tokens(first().begin() + 20, first().end()));
  expect_close("after a long rollback", cache.go_on(0, continued()), plain_first(), kCodesForRows);
}

// Sequences of other lengths are removed, so that the new one lies in the holes, in any order of cells.
TEST_P(Sequences, CellsInAnyOrder) {
  Cache cache(setup(), teach());
  for (int round = 0; round < 3; ++round) {
    cache.add_many({{1, Tokens(second().begin(), second().begin() + 30)}, {2, first()}, {3, Tokens(second().begin(), second().begin() + 17)}});
    cache.remove(1 + round, 5, -1);
    cache.remove(1 + (round + 1) % 3, 0, 12 + round);
  }
  cache.remove(1, 0, -1);
  cache.remove(2, 0, -1);
  cache.add(2, Tokens(first().begin(), first().begin() + 50));
  cache.add(1, second());
  cache.add(2, Tokens(first().begin() + 50, first().end()));
  expect_close("second", cache.go_on(1, continued()), plain_second());
  expect_close("first", cache.go_on(2, continued()), plain_first());
}

TEST_P(Sequences, SavedAndRestored) {
  Cache cache(setup(), teach());
  cache.add(1, second());
  cache.add(0, first());
  const std::vector<uint8_t> saved = cache.save(0);
  const Logits original = cache.go_on(0, continued());
  // In place, into another sequence, into a new cache, into one that learnt other conditioning.
  cache.remove(0, 0, -1);
  ASSERT_TRUE(cache.restore(0, saved));
  expect_close("in place", cache.go_on(0, continued()), original);
  ASSERT_TRUE(cache.restore(2, saved));
  expect_close("another sequence", cache.go_on(2, continued()), original);
  Cache fresh(setup());
  ASSERT_TRUE(fresh.restore(0, saved));
  Cache again(setup());
  ASSERT_TRUE(again.restore(0, fresh.save(0)));
  EXPECT_EQ(again.save(0), fresh.save(0));
  expect_close("new cache", fresh.go_on(0, continued()), original);
  // A cache that has learnt other conditioning rounds the keys that are not exact once more.
  Cache other(setup());
  other.add(1, teach_otherwise());
  ASSERT_TRUE(other.restore(0, saved));
  expect_close("other conditioning", other.go_on(0, continued()), original, kCodesForRows);
}

// While conditioning is being learnt, raw keys are saved, and go on teaching.
TEST_P(Sequences, SavedWhileLearning) {
  Cache cache(setup());
  cache.add(0, first());
  const std::vector<uint8_t> saved = cache.save(0);
  cache.remove(0, 0, -1);
  ASSERT_TRUE(cache.restore(0, saved));
  EXPECT_EQ(cache.save(0), saved);
  Cache untouched(setup());
  untouched.add(0, first());
  expect_close("restored while learning", cache.go_on(0, continued()), untouched.go_on(0, continued()));
}

// A state of all sequences, in memory and in a file.
TEST_P(Sequences, WholeState) {
  Cache cache(setup(), teach());
  cache.add(0, first());
  std::vector<uint8_t> state(llama_state_get_size(cache.get()));
  ASSERT_EQ(llama_state_get_data(cache.get(), state.data(), state.size()), state.size());
  const std::string file = testing::TempDir() + "kvturbo_state_" + std::to_string(getpid());
  ASSERT_TRUE(llama_state_save_file(cache.get(), file.c_str(), first().data(), first().size()));
  const Logits original = cache.go_on(0, continued());
  Cache fresh(setup());
  ASSERT_EQ(llama_state_set_data(fresh.get(), state.data(), state.size()), state.size());
  expect_close("whole state", fresh.go_on(0, continued()), original);
  Tokens tokens(first().size());
  size_t n_tokens = 0;
  ASSERT_TRUE(llama_state_load_file(cache.get(), file.c_str(), tokens.data(), tokens.size(), &n_tokens));
  EXPECT_EQ(tokens, first());
  expect_close("session file", cache.go_on(0, continued()), original);
  std::filesystem::remove(file);
}

// Stock's state goes on in our cache, and ours in stock's.
TEST_P(Sequences, StatesOfStock) {
  CacheSetup stock_setup = setup();
  stock_setup.ours = false;
  Cache stock(stock_setup);
  stock.add(0, teach());
  stock.add(0, first());
  const std::vector<uint8_t> saved = stock.save(0);
  const Logits original = stock.go_on(0, continued());
  Cache ours(setup());
  ASSERT_TRUE(ours.restore(0, saved));
  const std::vector<uint8_t> saved_again = ours.save(0);
  const double bound = is_f16() ? kAnyOrder : 4;  // another codec's loss, not an error
  expect_close("stock's state in ours", ours.go_on(0, continued()), original, bound);
  stock.remove(0, 0, -1);
  ASSERT_TRUE(stock.restore(0, saved_again));
  expect_close("our state in stock's", stock.go_on(0, continued()), original, bound);
}

// What is torn or foreign is refused, and the other sequence goes on as if nothing had been.
TEST_P(Sequences, BadStatesAreRefused) {
  Cache cache(setup(), teach());
  cache.add(0, first());
  const std::vector<uint8_t> good = cache.save(0);
  cache.remove(0, 0, -1);
  cache.add(1, second());
  for (const size_t n : {size_t{1}, size_t{100}, good.size() / 2, good.size() - 1}) {
    EXPECT_FALSE(cache.restore(2, std::vector<uint8_t>(good.begin(), good.begin() + static_cast<ptrdiff_t>(n)))) << n;
  }
  for (const size_t at : {size_t{0}, size_t{8}, size_t{12}}) {  // magic, counts of streams and cells
    std::vector<uint8_t> bad = good;
    for (size_t i = at; i < at + 4; ++i) bad[i] = 0xff;
    EXPECT_FALSE(cache.restore(2, bad)) << at;
  }
  EXPECT_EQ(llama_memory_seq_pos_max(cache.memory(), 2), -1);
  expect_close("the other sequence", cache.go_on(1, continued()), plain_second());
  ASSERT_TRUE(cache.restore(2, good));
  expect_close("the good state", cache.go_on(2, continued()), plain_first());
}

// Drops n tokens behind the first four and moves all others up, as a context shift does.
void shift(Cache* cache, llama_pos n) {
  cache->remove(0, 4, 4 + n);
  llama_memory_seq_add(cache->memory(), 0, 4 + n, -1, -n);
}

TEST_P(Sequences, Shifted) {
  if (!is_f16()) GTEST_SKIP() << "scripts/reliability.sh --only sequences measures what shifts cost";
  Logits results[2];
  for (const bool ours : {false, true}) {
    CacheSetup s = setup();
    s.ours = ours;
    Cache cache(s);
    cache.add(0, first());
    cache.add(1, second());
    shift(&cache, 31);
    results[ours] = cache.go_on(0, continued());
    shift(&cache, 7);
    const Logits more = cache.go_on(0, continued());
    results[ours].insert(results[ours].end(), more.begin(), more.end());
  }
  expect_close("shifted", results[1], results[0], 3 * kAnyOrder);  // a text with a gap: the model is less sure
}

double mean_divergence(const Logits& from, const Logits& to) {
  double sum = 0;
  for (size_t s = 0; s < from.size(); ++s) {
    const auto log_sum = [](const std::vector<float>& v) {
      const double largest = static_cast<double>(*std::max_element(v.begin(), v.end()));
      double total = 0;
      for (const float x : v) total += std::exp(static_cast<double>(x) - largest);
      return largest + std::log(total);
    };
    const double log_p = log_sum(from[s]), log_q = log_sum(to[s]);
    for (size_t i = 0; i < from[s].size(); ++i) {
      const double p = static_cast<double>(from[s][i]) - log_p, q = static_cast<double>(to[s][i]) - log_q;
      sum += std::exp(p) * (p - q);
    }
  }
  return sum / static_cast<double>(from.size());
}

// For scripts/reliability.sh: a text in batches of other lengths. In each layer only the order of sums differs (PluginLife.BatchesOfAnyLength);
// through all layers the last bits of keys get them other codes.
TEST(BatchLoss, DISABLED_OtherLengths) {
  CacheSetup s;
  s.n_cells = 1024;
  Tokens text;
  for (const Tokens* part : {&first(), &teach(), &second(), &teach_otherwise()}) text.insert(text.end(), part->begin(), part->end());
  Logits whole;
  for (const size_t n : {size_t{512}, size_t{170}, size_t{64}, size_t{40}}) {
    Cache cache(s, teach());
    for (size_t i = 0; i < text.size(); i += n) {
      const auto begin = text.begin() + static_cast<ptrdiff_t>(i), end = text.begin() + static_cast<ptrdiff_t>(std::min(i + n, text.size()));
      cache.add(0, Tokens(begin, end));
    }
    const Logits logits = cache.go_on(0, continued());
    if (whole.empty()) whole = logits;
    expect_close(("batches of " + std::to_string(n)).c_str(), logits, whole, kCodesForRows);
  }
}

// For scripts/reliability.sh: the divergence from stock after 0, 1, 8 and 64 shifts of two tokens each.
TEST(ShiftLoss, DISABLED_AfterManyShifts) {
  Logits results[2][4];
  for (const bool ours : {false, true}) {
    CacheSetup s;
    s.ours = ours;
    Cache cache(s);
    cache.add(0, teach());
    int n_shifts = 0;
    for (int i = 0; i < 4; ++i) {
      for (const int wanted[] = {0, 1, 8, 64}; n_shifts < wanted[i]; ++n_shifts) {
        shift(&cache, 2);
        cache.add(0, {second()[static_cast<size_t>(n_shifts)], first()[static_cast<size_t>(n_shifts)]});
      }
      const llama_pos end = llama_memory_seq_pos_max(cache.memory(), 0) + 1;
      for (const Tokens& text : {first(), second()}) {
        const Logits logits = cache.go_on(0, text);
        results[ours][i].insert(results[ours][i].end(), logits.begin(), logits.end());
        cache.remove(0, end, -1);
      }
    }
  }
  for (int i = 0; i < 4; ++i) {
    std::printf("%d shifts: mean KLD %.5f\n", i == 0 ? 0 : i == 1 ? 1 : i == 2 ? 8 : 64, mean_divergence(results[0][i], results[1][i]));
  }
}

}  // namespace
