// KeyMeans: what a run of cells takes for its mean.
#include "key_means.h"

#include <gtest/gtest.h>

#include <cmath>

namespace {

using kvt::plugin::KeyMeans;
constexpr int64_t kDim = 64, kRun = KeyMeans::kCells;

std::vector<float> mean_of(const KeyMeans& means, int64_t stream, int64_t head, int64_t cell) {
  std::vector<float> mean(kDim);
  for (int64_t i = 0; i < kDim; ++i) {
    mean[static_cast<size_t>(i)] = means.unit(stream, head, cell) * static_cast<float>(means.codes(stream, head, cell)[i]);
  }
  return mean;
}

// Channel 0 stays, channel 1 turns slowly, channel 2 turns fast, channel 3 is zero on average.
std::vector<float> key_at(int64_t cell) {
  std::vector<float> key(kDim, 0.0f);
  const auto t = static_cast<float>(cell);
  key[0] = 5;
  key[1] = 4 * std::cos(t / 8000);
  key[2] = 4 * std::cos(t / 3);
  key[3] = cell % 2 == 0 ? 1.0f : -1.0f;
  return key;
}

void add(KeyMeans* means, int64_t stream, int64_t begin, int64_t end) {
  for (int64_t cell = begin; cell < end; ++cell) means->add_key(stream, 0, cell, key_at(cell).data());
}

TEST(KeyMeans, FollowWhatStays) {
  KeyMeans means(1, 1, kDim, 4 * kRun);
  add(&means, 0, 0, 2 * kRun + 1);
  EXPECT_FALSE(means.is_new(0, 2 * kRun));
  EXPECT_TRUE(means.is_new(0, 3 * kRun));
  const std::vector<float> mean = mean_of(means, 0, 0, 2 * kRun);
  EXPECT_NEAR(mean[0], 5, 0.05);
  EXPECT_NEAR(mean[1], key_at(2 * kRun)[1], 0.2);
  EXPECT_NEAR(mean[2], 0, 0.1);
  EXPECT_NEAR(mean[3], 0, 0.05);
}

// Later keys of a run, and keys written over old ones, change nothing.
TEST(KeyMeans, AreSetOnce) {
  KeyMeans means(1, 1, kDim, 4 * kRun);
  add(&means, 0, 0, kRun + 1);
  const std::vector<float> mean = mean_of(means, 0, 0, kRun);
  add(&means, 0, kRun + 1, 2 * kRun);
  add(&means, 0, 3, 200);
  add(&means, 0, kRun, kRun + 100);
  EXPECT_EQ(mean, mean_of(means, 0, 0, kRun));
}

TEST(KeyMeans, FewKeysTakeTheMeanBefore) {
  KeyMeans means(2, 1, kDim, 4 * kRun);
  std::vector<float> first(kDim, 2.0f);
  means.set_first(first.data());
  add(&means, 1, 0, 10);
  add(&means, 1, 2 * kRun, 2 * kRun + 1);
  EXPECT_EQ(mean_of(means, 1, 0, 2 * kRun), mean_of(means, 0, 0, 0));
  EXPECT_NEAR(mean_of(means, 0, 0, 0)[7], 2, 0.01);
}

TEST(KeyMeans, KeysThatAreNotFiniteTeachNothing) {
  KeyMeans means(1, 1, kDim, 4 * kRun);
  std::vector<float> key(kDim, NAN);
  for (int64_t cell = 0; cell <= kRun; ++cell) means.add_key(0, 0, cell, key.data());
  EXPECT_EQ(mean_of(means, 0, 0, kRun), std::vector<float>(kDim, 0.0f));
  EXPECT_FALSE(means.is_new(0, kRun));
}

TEST(KeyMeans, SettledCellsKeepZeros) {
  KeyMeans means(1, 1, kDim, 4 * kRun);
  add(&means, 0, 0, kRun);
  means.settle(0, 0, kRun + 5);
  add(&means, 0, kRun, kRun + 1);
  EXPECT_EQ(mean_of(means, 0, 0, kRun), std::vector<float>(kDim, 0.0f));
}

TEST(KeyMeans, Copy) {
  KeyMeans means(2, 1, kDim, 4 * kRun);
  add(&means, 0, 0, 2 * kRun + 1);
  EXPECT_TRUE(means.copy(0, 1, 0, kRun + 64));
  EXPECT_EQ(mean_of(means, 1, 0, kRun), mean_of(means, 0, 0, kRun));
  EXPECT_TRUE(means.is_new(1, 2 * kRun));
  // A run that is not covered and has another mean: refused, with nothing changed.
  KeyMeans others(2, 1, kDim, 4 * kRun);
  add(&others, 0, 0, 2 * kRun + 1);
  others.settle(1, 0, kRun);
  EXPECT_FALSE(others.copy(0, 1, 0, kRun + 64));
  EXPECT_TRUE(others.is_new(1, 0));
  EXPECT_TRUE(others.copy(0, 1, 0, 2 * kRun));
}

}  // namespace
