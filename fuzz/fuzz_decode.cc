// Any bytes are a page: they decode, validate and are attended without undefined behaviour, in whichever kernel table, and pages
// that validate give finite numbers.

#include <algorithm>
#include <cmath>
#include <memory>

#include "api/codec_object.h"
#include "fuzz_kernels.h"

namespace {

constexpr uint32_t kSmallCells = 64, kLargeCells = 80;  // a whole page and part of one
constexpr uint32_t kDecoded = 4;                        // cells of a small input that are decoded: the reference is slow

// Of exactly the right size on the heap, so that the sanitizer sees a step too far.
std::unique_ptr<uint8_t[]> take_pages(kvt_fuzz::Input& in, size_t bytes) {
  std::unique_ptr<uint8_t[]> pages(new uint8_t[bytes]);
  in.fill(pages.get(), bytes);
  return pages;
}

bool all_finite(const std::vector<float>& values) {
  for (const float x : values)
    if (!std::isfinite(x)) return false;
  return true;
}

// Makes a page without rest lines one that validates, since random bytes hardly ever do.
void repair_page(const kvt::SideLayout& layout, uint8_t* page) {
  if (layout.table == nullptr) return;
  for (size_t at = 0; layout.code_bits == 8 && at < layout.norm_offset; ++at) page[at] &= 0x7F;
  for (size_t at = layout.norm_offset; at < layout.page_bytes; at += 2) {
    page[at + 1] &= 0x7F;
    if (page[at + 1] >= 0x7C) page[at + 1] = 0x7B;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kvt_fuzz::Input in(data, size);
  const kvt_fuzz::Start start(&in);
  const uint32_t d_k = start.head_dim(&in), d_v = start.head_dim(&in);
  const uint32_t n_cells = start.below(&in, kSmallCells + 1, kLargeCells + 1);
  const uint32_t n_group = 1 + start.below(&in, 2, 5);
  const uint32_t flags = in.byte(), table = in.byte();
  const uint32_t n_pages = (n_cells + KVT_PAGE_TOKENS - 1) / KVT_PAGE_TOKENS;

  kvt_codec* owner = nullptr;
  FUZZ_CHECK(kvt_codec_create(start.codec, d_k, d_v, &owner) == KVT_OK);
  const std::unique_ptr<kvt_codec, void (*)(kvt_codec*)> codec(owner, kvt_codec_destroy);
  const size_t k_bytes = kvt_page_bytes(owner, KVT_KEY), v_bytes = kvt_page_bytes(owner, KVT_VALUE);
  const auto k = take_pages(in, n_pages * k_bytes), v = take_pages(in, n_pages * v_bytes);
  std::vector<float> q(n_group * d_k);
  for (float& x : q) x = static_cast<float>(in.next() - 128) * (flags & 1 ? 1e4f : 1.0f / 32);
  std::vector<uint16_t> mask(n_cells);
  for (uint16_t& m : mask) {
    const uint8_t b = in.next();
    m = b % 3 == 0 ? 0xFC00 : static_cast<uint16_t>((b & 0x80) << 8 | (b % 64 + 0x20) << 8);  // -inf, or |bias| from 2^-7 up
  }
  if (flags & 2)
    for (uint32_t p = 0; p < n_pages; ++p) {
      repair_page(owner->key, k.get() + p * k_bytes);
      repair_page(owner->value, v.get() + p * v_bytes);
    }

  const bool k_valid = kvt_validate_pages(owner, KVT_KEY, k.get(), k_bytes, n_pages) == KVT_OK;
  const bool v_valid = kvt_validate_pages(owner, KVT_VALUE, v.get(), v_bytes, n_pages) == KVT_OK;
  const uint32_t n_decoded = start.is_large ? n_cells : std::min(n_cells, kDecoded);
  const uint32_t first = n_cells == 0 ? 0 : (flags >> 4) * (n_cells - n_decoded) / 15;
  std::vector<float> keys(n_decoded * d_k), values(n_decoded * d_v);
  FUZZ_CHECK(kvt_decode(owner, KVT_KEY, k.get(), k_bytes, first, n_decoded, keys.data(), d_k) == KVT_OK);
  FUZZ_CHECK(kvt_decode(owner, KVT_VALUE, v.get(), v_bytes, first, n_decoded, values.data(), d_v) == KVT_OK);
  if (k_valid) FUZZ_CHECK(all_finite(keys));
  if (v_valid) FUZZ_CHECK(all_finite(values));

  std::vector<float> out(n_group * d_v);
  kvt_attention a = kvt_fuzz::one_head(owner, k.get(), v.get(), n_cells, q.data(), n_group, 1);
  if (flags & 4) {
    a.mask = mask.data();
  }
  a.scale = 0.1f;
  a.logit_softcap = flags & 8 ? 30.0f : 0.0f;
  a.out = out.data();
  // The reference is the slowest by far: one input in eight.
  owner->kernels = table % 8 == 7 ? kvt_fuzz::tables().reference : kvt_fuzz::other_table(table / 8);
  FUZZ_CHECK(kvt_fuzz::attend(owner, a) == KVT_OK);
  if (k_valid && v_valid) FUZZ_CHECK(all_finite(out));
  return 0;
}
