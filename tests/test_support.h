// What the tests share: skipping under an ISA that is not there, codec ownership, pages with guard bytes, inputs by formula.
#pragma once

#include <gtest/gtest.h>
#include <kvturbo/kvturbo.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <numbers>
#include <string>
#include <vector>

namespace kvt_test {

inline constexpr uint32_t kHeadDims[] = {64, 80, 96, 112, 128, 192, 256};
inline constexpr kvt_codec_id kCodecs[] = {KVT_CODEC_F16,  KVT_CODEC_HYBRID, KVT_CODEC_SCALAR43, KVT_CODEC_K4V3, KVT_CODEC_K3V3,
                                           KVT_CODEC_K3V2, KVT_CODEC_K2V2,   KVT_CODEC_K8V4,     KVT_CODEC_K8V3};

struct CodecDeleter {
  void operator()(kvt_codec* codec) const { kvt_codec_destroy(codec); }
};
using CodecPtr = std::unique_ptr<kvt_codec, CodecDeleter>;

inline CodecPtr make_codec(kvt_codec_id id, uint32_t head_dim_k, uint32_t head_dim_v) {
  kvt_codec* codec = nullptr;
  const kvt_status status = kvt_codec_create(id, head_dim_k, head_dim_v, &codec);
  EXPECT_EQ(status, KVT_OK) << kvt_status_string(status);
  return CodecPtr(codec);
}

// Every test derives from this: ctest runs each binary once for each ISA, and a machine without it skips. The message is what
// unit_tests.cmake looks for.
class IsaTest : public testing::Test {
 protected:
  void SetUp() override {
    kvt_codec* codec = nullptr;
    const kvt_status status = kvt_codec_create(KVT_CODEC_F16, 64, 64, &codec);
    kvt_codec_destroy(codec);
    const char* isa = std::getenv("KVTURBO_ISA");
    if (status == KVT_ERROR_UNSUPPORTED_ISA) GTEST_SKIP() << "KVTURBO_ISA=" << (isa ? isa : "") << " is not available here";
  }
};

// ---- inputs --------------------------------------------------------------------------------------------------------------

// Output number `index` of splitmix64 with that seed.
inline uint64_t splitmix64(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Sum of four centred 16-bit uniforms times 2^exponent: exact in fp32; standard deviation 37837 * 2^exponent.
inline float bell(uint64_t seed, uint64_t index, int exponent) {
  const uint64_t z = splitmix64(seed, index);
  const int sum = static_cast<int>((z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48));
  return std::ldexp(static_cast<float>(sum - 131070), exponent);
}

// Unit normal (Box-Muller). Statistics only: libm's last bit may differ between machines.
inline double gaussian(uint64_t seed, uint64_t index) {
  const uint64_t pair = index & ~uint64_t{1};
  const double u = (static_cast<double>(splitmix64(seed, pair) >> 11) + 0.5) * 0x1p-53;
  const double angle = 2 * std::numbers::pi * static_cast<double>(splitmix64(seed, pair + 1) >> 11) * 0x1p-53;
  return std::sqrt(-2 * std::log(u)) * (index & 1 ? std::sin(angle) : std::cos(angle));
}

inline std::vector<float> gaussian_rows(uint64_t seed, size_t n_rows, size_t head_dim, double scale = 1) {
  std::vector<float> rows(n_rows * head_dim);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(scale * gaussian(seed, i));
  return rows;
}

// ---- fp16 ----------------------------------------------------------------------------------------------------------------

inline double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

// For numbers that a half holds exactly, and for infinities.
inline uint16_t half_bits_exact(double value) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits)
    if (half_value(static_cast<uint16_t>(bits)) == value) return static_cast<uint16_t>(bits);
  ADD_FAILURE() << value << " is not a half";
  return 0;
}

// ---- cells ---------------------------------------------------------------------------------------------------------------

inline std::vector<int64_t> cells_from(int64_t first, size_t n) {
  std::vector<int64_t> cells(n);
  for (size_t i = 0; i < n; ++i) cells[i] = first + static_cast<int64_t>(i);
  return cells;
}

inline size_t pages_for(size_t n_cells) { return (n_cells + KVT_PAGE_TOKENS - 1) / KVT_PAGE_TOKENS; }

// Encodes rows [n, head_dim] into cells 0 .. n - 1 of fresh pages.
inline std::vector<uint8_t> encode_rows(const kvt_codec* codec, kvt_side side, const std::vector<float>& rows,
                                        size_t head_dim) {
  const size_t n = rows.size() / head_dim;
  const size_t page_bytes = kvt_page_bytes(codec, side);
  std::vector<uint8_t> pages(pages_for(n) * page_bytes);
  const std::vector<int64_t> cells = cells_from(0, n);
  EXPECT_EQ(kvt_encode(codec, side, rows.data(), head_dim, n, cells.data(), pages.data(), page_bytes), KVT_OK);
  return pages;
}

inline std::vector<float> decode_rows(const kvt_codec* codec, kvt_side side, const std::vector<uint8_t>& pages, size_t n,
                                      size_t head_dim) {
  std::vector<float> rows(n * head_dim);
  EXPECT_EQ(kvt_decode(codec, side, pages.data(), kvt_page_bytes(codec, side), 0, n, rows.data(), head_dim), KVT_OK);
  return rows;
}

}  // namespace kvt_test
