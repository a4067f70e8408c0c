// KeyMeans: what a run of cells takes for its mean.
#include "key_means.h"

#include <gtest/gtest.h>

#include <cmath>

namespace {

using kvt::plugin::KeyMeans;
constexpr int64_t kDim = 64, kRun = KeyMeans::kCells;

std::vector<float> mean_of(const KeyMeans& means, int64_t stream, int64_t cell) {
  std::vector<float> mean(kDim);
  for (int64_t i = 0; i < kDim; ++i) {
    mean[static_cast<size_t>(i)] = means.unit(stream, 0, cell) * static_cast<float>(means.codes(stream, 0, cell)[i]);
  }
  return mean;
}

// Channel 0 stays, 1 turns slowly, 2 turns round, 3 has no mean.
const std::vector<float> kAll = [] {
  std::vector<float> v(kDim, 0.0f);
  v[0] = 5, v[1] = 4, v[2] = 3;
  return v;
}();
const std::vector<float> kNewest = [] {
  std::vector<float> v(kDim, 0.0f);
  v[0] = 5, v[1] = 2, v[2] = -3, v[3] = 0.5f;
  return v;
}();
const KeyMeans::RunAverages kBefore{kAll.data(), kNewest.data(), 490, 64};

TEST(KeyMeans, FollowWhatStays) {
  KeyMeans means(1, 1, kDim, 4 * kRun);
  means.predict(0, 0, kRun + 3, kBefore);
  EXPECT_FALSE(means.is_new(0, kRun));
  EXPECT_TRUE(means.is_new(0, 2 * kRun));
  const std::vector<float> mean = mean_of(means, 0, 2 * kRun - 1);
  EXPECT_NEAR(mean[0], 5, 0.03);
  EXPECT_NEAR(mean[1], 4.0 * 2 / (4 * 4) * 2, 0.03);
  EXPECT_EQ(mean[2], 0);
  EXPECT_EQ(mean[3], 0);
}

TEST(KeyMeans, AreSetOnce) {
  KeyMeans means(1, 1, kDim, 4 * kRun);
  means.predict(0, 0, kRun, kBefore);
  const std::vector<float> mean = mean_of(means, 0, kRun);
  means.predict(0, 0, kRun + 100, {kNewest.data(), kNewest.data(), 490, 64});
  means.settle(0, 0, kRun + 100);
  EXPECT_EQ(mean, mean_of(means, 0, kRun));
}

TEST(KeyMeans, FewKeysTakeTheMeanBefore) {
  KeyMeans means(2, 1, kDim, 4 * kRun);
  means.settle(1, 0, 3 * kRun);  // nothing before: zeros, for good
  const std::vector<float> first(kDim, 2.0f);
  means.set_first(first.data());
  means.predict(0, 0, 2 * kRun, {kAll.data(), kNewest.data(), 10, 10});
  EXPECT_EQ(mean_of(means, 0, 2 * kRun), mean_of(means, 0, 0));
  EXPECT_NEAR(mean_of(means, 0, 0)[7], 2, 0.01);
  EXPECT_FALSE(means.is_new(1, 3 * kRun));
  EXPECT_EQ(mean_of(means, 1, 3 * kRun), std::vector<float>(kDim, 0.0f));
  EXPECT_TRUE(means.is_new(0, kRun));
}

TEST(KeyMeans, KeysThatAreNotFiniteTeachNothing) {
  KeyMeans means(1, 1, kDim, 4 * kRun);
  std::vector<float> broken = kAll;
  broken[5] = NAN;
  means.predict(0, 0, kRun, {broken.data(), kNewest.data(), 490, 64});
  EXPECT_FALSE(means.is_new(0, kRun));
  EXPECT_EQ(mean_of(means, 0, kRun), std::vector<float>(kDim, 0.0f));
}

TEST(KeyMeans, Copy) {
  KeyMeans means(2, 1, kDim, 4 * kRun);
  means.predict(0, 0, kRun, kBefore);
  EXPECT_TRUE(means.copy(0, 1, 0, kRun + 64));
  EXPECT_EQ(mean_of(means, 1, kRun), mean_of(means, 0, kRun));
  EXPECT_TRUE(means.is_new(1, 2 * kRun));
  // A run that is not covered and has another mean: refused, with nothing changed.
  KeyMeans others(2, 1, kDim, 4 * kRun);
  others.predict(0, 0, kRun, kBefore);
  others.set_first(kNewest.data());
  others.settle(1, 0, kRun);
  const std::vector<float> mean = mean_of(others, 1, kRun);
  EXPECT_FALSE(others.copy(0, 1, 0, kRun + 64));
  EXPECT_EQ(mean, mean_of(others, 1, kRun));
  EXPECT_TRUE(others.copy(0, 1, 0, 2 * kRun));
}

}  // namespace
