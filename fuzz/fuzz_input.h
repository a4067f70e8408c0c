// What the fuzz targets share: taking numbers from an input, and stopping at a broken property.
#pragma once

#include <kvturbo/kvturbo.h>

#include <algorithm>
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
    if (left() == 0) std::memset(bytes, 0, n);
    for (size_t done = 0; left() > 0 && done < n;) {
      if (cursor_ >= left()) cursor_ = 0;
      const size_t some = std::min(n - done, left() - cursor_);
      std::memcpy(bytes + done, data_ + at_ + cursor_, some);
      cursor_ += some;
      done += some;
    }
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
  size_t cursor_ = 0;
};

// The first byte of an input: a codec, and whether shapes are small. Nearly all are, as the time of an execution grows with its shapes
// and most of what can go wrong does so in small ones; one byte in eleven stands for a large one.
struct Start {
  kvt_codec_id codec;
  bool is_large;
  explicit Start(Input* in) {
    const uint32_t b = in->byte();
    codec = static_cast<kvt_codec_id>(b % kCodecCount);
    is_large = b >= 26 * kCodecCount;
  }
  uint32_t head_dim(Input* in) const { return kHeadDims[in->below(is_large ? 7 : 2)]; }
  // Below `small`, or below `large`.
  uint32_t below(Input* in, uint32_t small, uint32_t large) const { return in->below(is_large ? large : small); }
};

}  // namespace kvt_fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
