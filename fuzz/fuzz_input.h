// What the fuzz targets share: taking numbers from an input, and stopping at a broken property.
#pragma once

#include <kvturbo/kvturbo.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

// Not assert: the property also holds in release builds.
#define FUZZ_CHECK(condition)                                                               \
  do {                                                                                      \
    if (!(condition)) {                                                                     \
      std::fprintf(stderr, "%s:%d: broken property: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                         \
    }                                                                                       \
  } while (false)

namespace kvt_fuzz {

inline constexpr uint32_t kCodecCount = 9;
inline constexpr uint32_t kHeadDims[] = {64, 80, 96, 112, 128, 192, 256};
inline constexpr const char* kTables[] = {"scalar", "avx2", "avxvnni", "avx512", "neon"};

// Reads an input from its start; beyond its end it gives zeros.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint8_t byte() {
    if (at_ == size_) return 0;
    return data_[at_++];
  }
  uint32_t below(uint32_t n) { return byte() % n; }
  size_t left() const { return size_ - at_; }

  // From here on what is left comes over and over, so that short inputs make whole pages.
  uint8_t next() {
    if (left() == 0) return 0;
    if (cursor_ >= left()) cursor_ = 0;
    return data_[at_ + cursor_++];
  }
  void fill(void* to, size_t n) {
    auto* bytes = static_cast<uint8_t*>(to);
    for (size_t i = 0; i < n; ++i) bytes[i] = next();
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
  size_t cursor_ = 0;
};

}  // namespace kvt_fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
