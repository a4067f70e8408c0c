// Rows that kvt_encode accepts give pages that validate and decode to finite numbers; rows that it refuses change nothing;
// every kernel table writes the reference's bytes, whatever the rows hold.

#include <cmath>
#include <memory>

#include "api/codec_object.h"
#include "api/engine_encode.h"
#include "fuzz_kernels.h"

namespace {

constexpr uint32_t kSmallRows = 2, kLargeRows = 6;
constexpr uint32_t kPages = 2;

// Inputs as raw floats mostly hold numbers that the sum of squares refuses, so there are tamer kinds too.
void take_row(kvt_fuzz::Input& in, uint32_t kind, float* x, size_t d) {
  in.fill(x, d * sizeof(float));
  if (kind == 0) return;
  for (size_t i = 0; i < d; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    if (kind == 1) {  // exponents around 0
      bits = (bits & 0x81FFFFFFu) | 0x3C000000u;
      std::memcpy(x + i, &bits, sizeof bits);
    } else if (kind == 2) {  // small integers: ties
      x[i] = static_cast<float>(static_cast<int>(bits % 9) - 4);
    } else {  // sparse
      x[i] = bits % 16 == 0 ? static_cast<float>(static_cast<int32_t>(bits)) : 0.0f;
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kvt_fuzz::Input in(data, size);
  const kvt_fuzz::Start start(&in);
  const kvt_side side = in.below(2) == 0 ? KVT_KEY : KVT_VALUE;
  const uint32_t d = start.head_dim(&in);
  const uint32_t choices = in.byte(), kind = choices % 4;
  const uint32_t n_rows = 1 + start.below(&in, kSmallRows, kLargeRows);
  kvt_codec* owner = nullptr;
  FUZZ_CHECK(kvt_codec_create(start.codec, d, d, &owner) == KVT_OK);
  const std::unique_ptr<kvt_codec, void (*)(kvt_codec*)> codec(owner, kvt_codec_destroy);
  owner->kernels = kvt_fuzz::other_table(choices / 4);
  const size_t page_bytes = kvt_page_bytes(owner, side);
  std::vector<int64_t> cells(n_rows);
  for (int64_t& cell : cells) cell = in.byte() % (kPages * KVT_PAGE_TOKENS);
  std::vector<float> rows(n_rows * d);
  for (uint32_t i = 0; i < n_rows; ++i) take_row(in, kind, rows.data() + i * d, d);

  std::vector<uint8_t> pages(kPages * page_bytes);
  const bool accepted = kvt_encode(owner, side, rows.data(), d, n_rows, cells.data(), pages.data(), page_bytes) == KVT_OK;
  if (accepted) {
    FUZZ_CHECK(kvt_validate_pages(owner, side, pages.data(), page_bytes, kPages) == KVT_OK);
    // The cells that were written, since decoding is slow, and one that perhaps was not.
    std::vector<float> decoded(d);
    std::vector<int64_t> asked = cells;
    asked.push_back((cells[0] + 1) % (kPages * KVT_PAGE_TOKENS));
    for (const int64_t cell : asked) {
      FUZZ_CHECK(kvt_decode(owner, side, pages.data(), page_bytes, static_cast<size_t>(cell), 1, decoded.data(), d) == KVT_OK);
      for (const float x : decoded) FUZZ_CHECK(std::isfinite(x));
    }
  } else {
    FUZZ_CHECK(pages == std::vector<uint8_t>(pages.size()));
    // What an engine would store (format.md section 5, step 2).
    kvt_internal::encode_unchecked(owner, side, rows.data(), d, n_rows, cells.data(), pages.data(), page_bytes);
  }
  std::vector<uint8_t> expected(pages.size());
  for (uint32_t i = 0; i < n_rows; ++i) {
    const auto cell = static_cast<size_t>(cells[i]);
    kvt_fuzz::tables().reference->encode_row(owner->layout(side), rows.data() + size_t{i} * d, expected.data() + cell / KVT_PAGE_TOKENS * page_bytes,
                                             static_cast<unsigned>(cell % KVT_PAGE_TOKENS));
  }
  FUZZ_CHECK(pages == expected);
  return 0;
}
