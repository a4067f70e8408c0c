// kvturbo.hpp: the bounds that the wrapper adds to the C API, and that it passes on what the C API does.

#include "kvturbo/kvturbo.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace {

constexpr uint32_t kHeadDim = 64;

kvt_status status_of(auto&& call) {
  try {
    call();
  } catch (const kvt::Error& error) {
    return error.code();
  }
  return KVT_OK;
}

TEST(Wrapper, UnknownCodecAndHeadDimThrow) {
  EXPECT_EQ(status_of([] { kvt::Codec("k9v9", 64, 64); }), KVT_ERROR_UNKNOWN_CODEC);
  EXPECT_EQ(status_of([] { kvt::Codec("k4v3", 64, 100); }), KVT_ERROR_HEAD_DIM);
}

TEST(Wrapper, MovedCodecWorks) {
  kvt::Codec first("k4v3", 64, 128), second("f16", 80, 80);
  second = std::move(first);
  const kvt::Codec third(std::move(second));
  EXPECT_EQ(third.head_dim(KVT_VALUE), 128u);
  EXPECT_EQ(third.page_bytes(KVT_KEY), kvt_page_bytes_for(KVT_CODEC_K4V3, KVT_KEY, 64));
}

TEST(Wrapper, RowsComeBack) {
  const kvt::Codec codec("f16", kHeadDim, kHeadDim);
  kvt::PageArray pages(codec, KVT_KEY, 2, 70);
  std::vector<float> rows(2 * kHeadDim);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i);
  const int64_t cells[] = {68, 69};
  pages.encode(1, rows, cells);
  EXPECT_EQ(pages.decode(1, 68, 2), rows);
  EXPECT_EQ(pages.decode(0, 68, 2), std::vector<float>(2 * kHeadDim));
}

TEST(Wrapper, WhatDoesNotFitIsRefused) {
  const kvt::Codec codec("k4v3", kHeadDim, kHeadDim);
  kvt::PageArray pages(codec, KVT_KEY, 2, 70);
  std::vector<float> row(kHeadDim, 1.0f);
  const auto encode = [&](uint32_t head, int64_t cell) { return status_of([&] { pages.encode(head, row, {&cell, 1}); }); };
  EXPECT_EQ(encode(0, 69), KVT_OK);
  EXPECT_EQ(encode(0, 70), KVT_ERROR_CELL_RANGE);  // within the last page, beyond the cells
  EXPECT_EQ(encode(0, -1), KVT_ERROR_CELL_RANGE);
  EXPECT_EQ(encode(2, 0), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status_of([&] { pages.decode(0, 69, 2); }), KVT_ERROR_CELL_RANGE);
  EXPECT_EQ(status_of([&] { pages.decode(0, SIZE_MAX, 2); }), KVT_ERROR_CELL_RANGE);
  row[3] = NAN;
  EXPECT_EQ(encode(0, 0), KVT_ERROR_NOT_FINITE);
  row.pop_back();
  EXPECT_EQ(encode(0, 0), KVT_ERROR_INVALID_ARGUMENT);
}

TEST(Wrapper, AttentionOfOneCellIsItsValue) {
  const kvt::Codec codec("f16", kHeadDim, 80);
  kvt::PageArray keys(codec, KVT_KEY, 1, 1), values(codec, KVT_VALUE, 1, 1);
  const int64_t cell = 0;
  const std::vector<float> key(kHeadDim, 0.5f), value(80, 3.0f), q(2 * 3 * kHeadDim, 1.0f);
  keys.encode(0, key, {&cell, 1});
  values.encode(0, value, {&cell, 1});
  std::vector<float> out(2 * 3 * 80);
  kvt::attend(codec, kvt::make_attention(codec, keys, values, 1, 3, q, out, 1.0f));
  EXPECT_EQ(out, std::vector<float>(2 * 3 * 80, 3.0f));
  EXPECT_EQ(status_of([&] { kvt::make_attention(codec, keys, values, 2, 3, q, out, 1.0f); }), KVT_ERROR_CELL_RANGE);
  EXPECT_EQ(status_of([&] { kvt::make_attention(codec, keys, values, 1, 3, q, std::span(out).first(80), 1.0f); }),
            KVT_ERROR_INVALID_ARGUMENT);
}

}  // namespace
