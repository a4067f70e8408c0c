// The same rows, queries and masks in a kernel table and in the reference: the same bytes, and the same attention but for the rounding of
// fp32 sums and of weights that lie next to a tie (docs/algorithm.md 7).

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "api/codec_object.h"
#include "fuzz_kernels.h"

namespace {

// A few cells are written: encoders are slow under the sanitizers, and an empty cell is a cell, too.
constexpr uint32_t kSmallCells = 64, kLargeCells = 128, kSmallWritten = 2, kLargeWritten = 5;
constexpr uint32_t kSmallGroup = 2, kLargeGroup = 5, kSmallQueries = 2, kLargeQueries = 3;

// Small numbers of either sign, so that scores stay where fp32 sums agree: |q| |k| / sqrt(d) < 2^8.
void take_rows(kvt_fuzz::Input& in, std::vector<float>* rows) {
  for (float& x : *rows) x = static_cast<float>(static_cast<int8_t>(in.next())) / 64.0f;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kvt_fuzz::Input in(data, size);
  const kvt_fuzz::Start start(&in);
  const uint32_t d_k = start.head_dim(&in), d_v = start.head_dim(&in);
  const uint32_t n_cells = 1 + start.below(&in, kSmallCells, kLargeCells);
  const uint32_t n_group = 1 + start.below(&in, kSmallGroup, kLargeGroup), n_queries = 1 + start.below(&in, kSmallQueries, kLargeQueries);
  const uint32_t flags = in.byte(), n_rows = n_group * n_queries, n_written = 1 + start.below(&in, kSmallWritten, kLargeWritten);
  const uint32_t n_pages = (n_cells + KVT_PAGE_TOKENS - 1) / KVT_PAGE_TOKENS;

  kvt_codec* owner = nullptr;
  FUZZ_CHECK(kvt_codec_create(start.codec, d_k, d_v, &owner) == KVT_OK);
  const std::unique_ptr<kvt_codec, void (*)(kvt_codec*)> codec(owner, kvt_codec_destroy);
  const size_t k_bytes = owner->key.page_bytes, v_bytes = owner->value.page_bytes;
  std::vector<uint32_t> cells(n_written);
  for (uint32_t& cell : cells) cell = in.byte() % n_cells;
  std::vector<float> k_rows(n_written * d_k), v_rows(n_written * d_v), q(n_rows * d_k);
  take_rows(in, &k_rows);
  take_rows(in, &v_rows);
  take_rows(in, &q);
  std::vector<uint16_t> mask(n_cells * n_queries);
  for (uint16_t& m : mask) m = in.next() % 3 == 0 ? 0xFC00 : 0;
  float largest = 0;
  for (const float v : v_rows) largest = std::max(largest, std::fabs(v));

  // The pages are another table's; whether the reference's are the same is asked of one input in eight, and of each by round_trip.
  const kvt::cpu::KernelTable* const other = kvt_fuzz::other_table(flags >> 5);
  const auto write_pages = [&](const kvt::cpu::KernelTable* kernels) {
    std::vector<uint8_t> k(n_pages * k_bytes), v(n_pages * v_bytes);
    for (uint32_t i = 0; i < n_written; ++i) {
      const uint32_t page = cells[i] / KVT_PAGE_TOKENS, slot = cells[i] % KVT_PAGE_TOKENS;
      kernels->encode_row(owner->key, k_rows.data() + size_t{i} * d_k, k.data() + page * k_bytes, slot);
      kernels->encode_row(owner->value, v_rows.data() + size_t{i} * d_v, v.data() + page * v_bytes, slot);
    }
    return std::pair(std::move(k), std::move(v));
  };
  const auto [k, v] = write_pages(other);
  if ((flags & 0x1C) == 0x1C) FUZZ_CHECK(write_pages(kvt_fuzz::tables().reference) == std::pair(k, v));

  kvt_attention a = kvt_fuzz::one_head(owner, k.data(), v.data(), n_cells, q.data(), n_group, n_queries);
  if (flags & 1) a.mask = mask.data();
  a.mask_query_stride = n_cells * sizeof(uint16_t);
  a.scale = 0.125f;
  a.logit_softcap = flags & 2 ? 30.0f : 0.0f;
  const auto attend = [&](const kvt::cpu::KernelTable* kernels) {
    std::vector<float> out(n_rows * d_v);
    owner->kernels = kernels;
    a.out = out.data();
    FUZZ_CHECK(kvt_fuzz::attend(owner, a) == KVT_OK);
    return out;
  };
  const std::vector<float> expected = attend(kvt_fuzz::tables().reference), out = attend(other);
  // A weight that falls to the other side of a tie: 1/127 of its page's largest, times a decoded value, at most twice the rows' largest
  // in a rotated basis. Two pages, and a few ties.
  const float bound = 0.05f * largest * std::sqrt(static_cast<float>(d_v)) + 1e-6f;
  for (size_t i = 0; i < out.size(); ++i) FUZZ_CHECK(std::fabs(out[i] - expected[i]) <= bound);
  return 0;
}
