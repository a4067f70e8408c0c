// Rows that kvt_encode accepts give pages that validate and decode to finite numbers; rows that it refuses change nothing;
// every kernel table writes the same bytes, whatever the rows hold.

#include <cmath>
#include <memory>

#include "api/engine_encode.h"
#include "cpu/kernel_select.h"
#include "fuzz_input.h"

namespace {

constexpr uint32_t kMaxRows = 6;
constexpr size_t kPages = 2;

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
  const auto id = static_cast<kvt_codec_id>(in.below(kvt_fuzz::kCodecCount));
  const kvt_side side = in.below(2) == 0 ? KVT_KEY : KVT_VALUE;
  const uint32_t d = kvt_fuzz::kHeadDims[in.below(7)];
  const uint32_t kind = in.below(4);
  const uint32_t n_rows = 1 + in.below(kMaxRows);
  kvt_codec* owner = nullptr;
  FUZZ_CHECK(kvt_codec_create(id, d, d, &owner) == KVT_OK);
  const std::unique_ptr<kvt_codec, void (*)(kvt_codec*)> codec(owner, kvt_codec_destroy);
  const size_t page_bytes = kvt_page_bytes(owner, side);
  std::vector<int64_t> cells(n_rows);
  for (int64_t& cell : cells) cell = in.byte() % (kPages * KVT_PAGE_TOKENS);
  std::vector<float> rows(n_rows * d);
  for (uint32_t i = 0; i < n_rows; ++i) take_row(in, kind, rows.data() + i * d, d);

  std::vector<uint8_t> pages(kPages * page_bytes);
  const bool accepted = kvt_encode(owner, side, rows.data(), d, n_rows, cells.data(), pages.data(), page_bytes) == KVT_OK;
  if (accepted) {
    FUZZ_CHECK(kvt_validate_pages(owner, side, pages.data(), page_bytes, kPages) == KVT_OK);
    std::vector<float> decoded(kPages * KVT_PAGE_TOKENS * d);
    FUZZ_CHECK(kvt_decode(owner, side, pages.data(), page_bytes, 0, kPages * KVT_PAGE_TOKENS, decoded.data(), d) == KVT_OK);
    for (const float x : decoded) FUZZ_CHECK(std::isfinite(x));
  } else {
    FUZZ_CHECK(pages == std::vector<uint8_t>(pages.size()));
    // What an engine would store (format.md section 5, step 2).
    kvt_internal::encode_unchecked(owner, side, rows.data(), d, n_rows, cells.data(), pages.data(), page_bytes);
  }
  const kvt::SideLayout layout = kvt::make_side_layout(id, side, d);
  for (const char* name : kvt_fuzz::kTables) {
    const kvt::cpu::KernelTable* kernels = kvt::cpu::find_kernels(name);
    if (kernels == nullptr) continue;
    std::vector<uint8_t> other(pages.size());
    for (uint32_t i = 0; i < n_rows; ++i) {
      const auto cell = static_cast<size_t>(cells[i]);
      kernels->encode_row(layout, rows.data() + size_t{i} * d, other.data() + cell / KVT_PAGE_TOKENS * page_bytes,
                          static_cast<unsigned>(cell % KVT_PAGE_TOKENS));
    }
    FUZZ_CHECK(other == pages);
  }
  return 0;
}
