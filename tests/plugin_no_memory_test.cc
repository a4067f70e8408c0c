// Every allocation that the plug-in makes in the life of a cache fails once, and so do all from it on: the host gets a null pointer or a
// status, never a signal or an exception. After a failure the same step is taken again, as a server would, and the cache is none the worse:
// the run ends with the attention of an undisturbed one.
#include <gtest/gtest.h>

#include <vector>

#include "failing_memory.h"
#include "plugin_host.h"

namespace {

namespace memory = kvt_test::failing_memory;

using kvt_test::ggml;
using kvt_test::Host;

// While keys are being learnt (below 256), a batch with a list of its own, one that crosses a page, single tokens.
struct Step {
  int64_t first, n;
};
constexpr Step kSteps[] = {{0, 20}, {20, 100}, {120, 3}, {123, 1}, {124, 200}, {324, 1}};

struct Outcome {
  int n_failures = 0;
  bool is_complete = false;
  std::vector<float> out;  // of the last step
};

// If is_retried, the injection ends with the first failure, and the step is taken again.
Outcome live(ggml_backend_dev_t device, bool is_retried) {
  Outcome outcome;
  Host host(device);
  if (!host.has_cache()) {
    ++outcome.n_failures;
    return outcome;
  }
  for (const Step& s : kSteps) {
    if (host.step(s.first, s.n, &outcome.out) == GGML_STATUS_SUCCESS) continue;
    ++outcome.n_failures;
    if (!is_retried) continue;
    memory::disarm();
    if (host.step(s.first, s.n, &outcome.out) != GGML_STATUS_SUCCESS) return outcome;
  }
  outcome.is_complete = true;
  return outcome;
}

class PluginNoMemory : public testing::Test {
 protected:
  void SetUp() override {
    ggml();
    static ggml_backend_reg_t registry = ggml().ggml_backend_load(std::getenv("TEST_PLUGIN"));
    ASSERT_NE(registry, nullptr);
    ours_ = ggml().ggml_backend_dev_by_name("KVTURBO0");
    ASSERT_NE(ours_, nullptr);
    ASSERT_TRUE(memory::watch("libggml-kvturbo"));
    live(ours_, false);  // what is made once in a process: codecs, messages
    memory::arm(0, -1);
    undisturbed_ = live(ours_, false);
    n_calls_ = memory::n_calls();
    ASSERT_TRUE(undisturbed_.is_complete);
    ASSERT_GT(n_calls_, 50);
  }
  void TearDown() override { memory::disarm(); }

  ggml_backend_dev_t ours_ = nullptr;
  Outcome undisturbed_;
  long n_calls_ = 0;
};

TEST_F(PluginNoMemory, EachAllocationFailsOnce) {
  int n_noticed = 0;
  for (long i = 0; i < n_calls_; ++i) {
    memory::arm(i, i);
    const Outcome outcome = live(ours_, true);
    memory::disarm();
    n_noticed += outcome.n_failures > 0;
    if (!outcome.is_complete) {
      EXPECT_EQ(outcome.n_failures, 1) << "allocation " << i << ": the step fails again";
      continue;
    }
    // Where keys could not be learnt when it was due, they are conditioned a little otherwise.
    EXPECT_LT(kvt_test::difference(outcome.out, undisturbed_.out), 0.05) << "allocation " << i;
  }
  std::printf("%ld allocations, %d failures reached the host\n", n_calls_, n_noticed);
  EXPECT_GT(n_noticed, 10);
}

TEST_F(PluginNoMemory, AllAllocationsFailFromOneOn) {
  int n_noticed = 0;
  for (long i = 0; i < n_calls_; i += 7) {
    memory::arm(i, 1L << 60);
    n_noticed += live(ours_, false).n_failures > 0;
    memory::disarm();
  }
  EXPECT_GT(n_noticed, 4);
  EXPECT_LT(kvt_test::difference(live(ours_, false).out, undisturbed_.out), 1e-6);
}

}  // namespace
