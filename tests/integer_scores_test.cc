// The integer sums that scores are made of are equal to the bit in every kernel table, whichever way the kernels take.

#include <cstring>

#include "cpu/attend_scratch.h"
#include "cpu/kernel_select.h"
#include "test_support.h"

namespace kvt_test {
namespace {

class IntegerScores : public IsaTest {};

struct Sums {
  alignas(64) int32_t value[2 * 4 * 64] = {};
};

Sums sums_of(const kvt::cpu::KernelTable& table, const kvt::SideLayout& key, const std::vector<uint8_t>& page,
             const std::vector<int8_t>& query, unsigned n_rows, bool decodes_in_registers) {
  std::vector<uint8_t> memory(kvt::cpu::attend_scratch_bytes(key, key) + 64);
  uint8_t* scratch = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  Sums sums;
  table.sum_keys(key, page.data(), query.data(), query.data(), n_rows, decodes_in_registers, scratch, sums.value);
  return sums;
}

// |q| of the eight dims that share an int16 lane must stay within 258 together (attend_loop.h, quantise_query): few large values, or
// many small ones.
std::vector<int8_t> queries(uint64_t seed, size_t n, bool has_large) {
  std::vector<int8_t> q(n);
  for (size_t i = 0; i < n; ++i) {
    const uint64_t z = splitmix64(seed, i);
    q[i] = has_large ? static_cast<int8_t>(i % 16 == z % 16 ? (z >> 8 & 1 ? 127 : -127) : 0) : static_cast<int8_t>(static_cast<int>(z % 63) - 31);
  }
  return q;
}

TEST_F(IntegerScores, EqualThoseOfPlainLoops) {
  const kvt::cpu::KernelTable& table = *kvt::cpu::process_kernels();
  const kvt::cpu::KernelTable& plain = *kvt::cpu::find_kernels("scalar");
  for (const kvt_codec_id id : kCodecs) {
    if (id == KVT_CODEC_F16) continue;
    for (const uint32_t d : kHeadDims) {
      const kvt::SideLayout key = kvt::make_side_layout(id, KVT_KEY, d);
      std::vector<uint8_t> page(key.page_bytes);
      for (const bool is_random : {false, true}) {  // of an encoder, and any codes at all
        if (is_random) {
          // Bytes of 8-bit keys are levels, 127 at most in a valid page.
          const unsigned mask = key.code_bits == 8 ? 0x7f : 0xff;
          for (size_t i = 0; i < page.size(); ++i) page[i] = static_cast<uint8_t>(splitmix64(41, i) & mask);
        } else {
          page = encode_rows(make_codec(id, d, d).get(), KVT_KEY, gaussian_rows(40, 64, d), d);
        }
        for (const bool has_large : {false, true})
          for (unsigned n_rows = 1; n_rows <= 4; ++n_rows) {
            const std::vector<int8_t> query = queries(42, size_t{n_rows} * d, has_large);
            const Sums expected = sums_of(plain, key, page, query, n_rows, false);
            for (const bool decodes_in_registers : {false, true}) {
              const Sums got = sums_of(table, key, page, query, n_rows, decodes_in_registers);
              for (size_t part = 0; part < (key.has_residual ? 2u : 1u); ++part)
                for (size_t i = 0; i < n_rows * 64; ++i)
                  ASSERT_EQ(got.value[part * 256 + i], expected.value[part * 256 + i])
                      << kvt_codec_name(id) << " d " << d << " rows " << n_rows << " registers " << decodes_in_registers << " part " << part
                      << " row " << i / 64 << " token " << i % 64;
            }
          }
      }
    }
  }
}

}  // namespace
}  // namespace kvt_test
