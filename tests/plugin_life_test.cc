// What a process does to the plug-in: several contexts, one after another, interleaved and in threads; another number of threads from step
// to step; fork; unloading.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "plugin_host.h"

namespace {

using kvt_test::difference;
using kvt_test::ggml;
using kvt_test::Host;
using kvt_test::kCells;

ggml_backend_reg_t g_registry = nullptr;

class PluginLife : public testing::Test {
 protected:
  void SetUp() override {
    ggml();
    if (g_registry == nullptr) g_registry = ggml().ggml_backend_load(std::getenv("TEST_PLUGIN"));
    ASSERT_NE(g_registry, nullptr);
    ours_ = ggml().ggml_backend_dev_by_name("KVTURBO0");
    ASSERT_NE(ours_, nullptr);
    // Enough to freeze the conditioning of the keys; then single tokens and drafts.
    Host host(ours_);
    alone_ = run(&host);
  }

  struct Step {
    int64_t first, n;
  };
  static constexpr Step kSteps[] = {{0, 300}, {300, 1}, {301, 4}, {305, 1}, {306, 1}};

  static std::vector<float> step(Host* host, size_t i) {
    std::vector<float> out;
    EXPECT_EQ(host->step(kSteps[i].first, kSteps[i].n, &out), GGML_STATUS_SUCCESS);
    return out;
  }
  static std::vector<float> run(Host* host) {
    std::vector<float> out;
    for (size_t i = 0; i < std::size(kSteps); ++i) out = step(host, i);
    return out;
  }
  static void set_threads(Host* host, int n) {
    const auto set = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml().ggml_backend_reg_get_proc_address(g_registry, "ggml_backend_set_n_threads"));
    ASSERT_NE(set, nullptr);
    set(host->backend(), n);
  }

  ggml_backend_dev_t ours_ = nullptr;
  std::vector<float> alone_;
};

TEST_F(PluginLife, ContextsInterleaved) {
  Host a(ours_), b(ours_);
  std::vector<float> of_a, of_b;
  for (size_t i = 0; i < std::size(kSteps); ++i) {
    of_a = step(&a, i);
    of_b = step(&b, i);
  }
  EXPECT_EQ(of_a, alone_);
  EXPECT_EQ(of_b, alone_);
}

TEST_F(PluginLife, ContextsInThreads) {
  std::vector<std::vector<float>> outs(3);
  std::vector<std::thread> threads;
  for (auto& out : outs) {
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) {
        Host host(ours_);
        out = run(&host);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  for (const auto& out : outs) EXPECT_EQ(out, alone_);
}

// Another context computes while a state is being restored: the keys that wait for their conditioning go on waiting.
TEST_F(PluginLife, RestoreInterrupted) {
  Host saved(ours_), other(ours_), restored(ours_);
  run(&saved);
  step(&other, 0);
  step(&restored, 0);  // settles what its cells are
  restored.clear();
  const std::vector<ggml_fp16_t> keys = saved.keys();
  constexpr int64_t kSet = 6, kUsed = 307;  // too few rows for all pieces of the conditioning
  restored.set_keys(0, kSet, keys);
  step(&other, 1);
  restored.set_keys(kSet, kUsed - kSet, keys);
  EXPECT_EQ(restored.keys(), keys);
}

// In threads: one restores, one computes.
TEST_F(PluginLife, RestoreInThreads) {
  Host saved(ours_);
  run(&saved);
  const std::vector<ggml_fp16_t> keys = saved.keys();
  std::vector<float> out;
  std::vector<ggml_fp16_t> restored_keys;
  std::thread computing([&] {
    for (int round = 0; round < 3; ++round) {
      Host host(ours_);
      out = run(&host);
    }
  });
  std::thread restoring([&] {
    Host host(ours_);
    step(&host, 0);
    for (int round = 0; round < 3; ++round) {
      host.clear();
      for (int64_t cell = 0; cell < kCells; cell += 4) host.set_keys(cell, 4, keys);
      restored_keys = host.keys();
    }
  });
  computing.join();
  restoring.join();
  EXPECT_EQ(out, alone_);
  EXPECT_EQ(restored_keys, keys);
}

// A text in batches of other lengths, from one with all queries' newest rows in many passes to single tokens: attention sums the same rows.
TEST_F(PluginLife, BatchesOfAnyLength) {
  constexpr int64_t kBegin = 300, kEnd = 500;
  std::vector<float> whole;
  for (const int64_t n : {kEnd - kBegin, int64_t{100}, int64_t{60}, int64_t{40}, int64_t{7}, int64_t{1}}) {
    Host host(ours_);
    step(&host, 0);
    std::vector<float> all, out;
    for (int64_t cell = kBegin; cell < kEnd; cell += n) {
      // The same rows whatever the batch: those of one token.
      ASSERT_EQ(host.step(cell, std::min(n, kEnd - cell), &out, 1), GGML_STATUS_SUCCESS);
      all.insert(all.end(), out.begin(), out.end());
    }
    if (whole.empty()) whole = all;
    std::printf("batches of %d: relative difference %.2g\n", static_cast<int>(n), difference(all, whole));
    EXPECT_LT(difference(all, whole), 1e-5) << n;
  }
}

// More threads, fewer, more than ever before. Parts of a page's sums differ between thread counts in their last bits (algorithm.md 7).
TEST_F(PluginLife, ThreadCountChanges) {
  Host host(ours_);
  std::vector<float> out;
  const int counts[] = {1, 5, 2, 9, 3};
  for (size_t i = 0; i < std::size(kSteps); ++i) {
    set_threads(&host, counts[i]);
    out = step(&host, i);
  }
  EXPECT_LT(difference(out, alone_), 1e-3);
}

// A child has the parent's cache as it was, and what it does to it stays with it. (It may not compute: OpenMP's threads do not fork.)
TEST_F(PluginLife, Fork) {
  Host host(ours_);
  for (size_t i = 0; i < 3; ++i) step(&host, i);
  const std::vector<ggml_fp16_t> keys = host.keys();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const bool is_same = host.keys() == keys;
    host.clear();
    _exit(is_same ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(host.keys(), keys);
  step(&host, 3);
  EXPECT_EQ(step(&host, 4), alone_);
}

// Last, as the names run in this order: nothing of ours runs afterwards, not at exit either.
TEST_F(PluginLife, ZUnload) {
  ggml().ggml_backend_unload(g_registry);
  EXPECT_EQ(ggml().ggml_backend_dev_by_name("KVTURBO0"), nullptr);
  g_registry = ggml().ggml_backend_load(std::getenv("TEST_PLUGIN"));
  ASSERT_NE(g_registry, nullptr);
  ours_ = ggml().ggml_backend_dev_by_name("KVTURBO0");
  ASSERT_NE(ours_, nullptr);
  Host host(ours_);
  EXPECT_EQ(run(&host), alone_);
}

}  // namespace
