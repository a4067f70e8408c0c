// kvt_internal::encode_unchecked: rows that are not finite (format.md section 5, steps 2 and 6), and what attention makes of
// them.

#include "api/engine_encode.h"

#include <cstring>

#include "cpu/kernel_select.h"
#include "test_support.h"

namespace kvt_test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr kvt_codec_id kCoded[] = {KVT_CODEC_HYBRID, KVT_CODEC_SCALAR43, KVT_CODEC_K4V3,
                                   KVT_CODEC_K3V3,   KVT_CODEC_K2V2,     KVT_CODEC_K8V4};

size_t norm_parts(kvt_codec_id codec, kvt_side side) { return codec == KVT_CODEC_HYBRID && side == KVT_KEY ? 2 : 1; }

void encode(const kvt_codec* codec, kvt_side side, const std::vector<float>& rows, size_t d, const std::vector<int64_t>& cells,
            std::vector<uint8_t>& pages) {
  kvt_internal::encode_unchecked(codec, side, rows.data(), d, cells.size(), cells.data(), pages.data(),
                                 kvt_page_bytes(codec, side));
}

class EngineEncode : public IsaTest {};

// What kvt_encode accepts, it encodes alike.
TEST_F(EngineEncode, FiniteRowsAsTheApi) {
  for (const kvt_codec_id id : kCodecs)
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
      const CodecPtr codec = make_codec(id, 112, 112);
      const std::vector<float> rows = gaussian_rows(21, 70, 112);
      std::vector<uint8_t> pages(2 * kvt_page_bytes(codec.get(), side));
      encode(codec.get(), side, rows, 112, cells_from(0, 70), pages);
      EXPECT_EQ(pages, encode_rows(codec.get(), side, rows, 112)) << kvt_codec_name(id);
    }
}

// NaN norm, codes 0, whichever value is at fault and whatever the cell held; neighbours keep their bytes; every table writes
// the same page.
TEST_F(EngineEncode, RowsThatAreNotFiniteGetNanNormsAndZeroCodes) {
  for (const kvt_codec_id id : kCoded)
    for (const kvt_side side : {KVT_KEY, KVT_VALUE})
      for (const uint32_t d : kHeadDims)
        for (const float wrong : {kNan, -kNan, kInf, -kInf, 3e19f}) {  // the square of the last overflows
          const CodecPtr codec = make_codec(id, d, d);
          const size_t norm_offset = kvt_page_bytes(codec.get(), side) - 128 * norm_parts(id, side);
          const std::vector<uint8_t> before = encode_rows(codec.get(), side, gaussian_rows(22, 64, d), d);
          for (const size_t at : {size_t{0}, size_t{d / 2}, size_t{d - 1}}) {
            constexpr int64_t kCell = 21;
            std::vector<float> row = gaussian_rows(23, 1, d);
            row[at] = wrong;
            std::vector<uint8_t> page = before;
            encode(codec.get(), side, row, d, {kCell}, page);
            uint16_t norm = 0;
            std::memcpy(&norm, page.data() + norm_offset + 2 * kCell, 2);
            ASSERT_TRUE(std::isnan(half_value(norm))) << kvt_codec_name(id) << " side " << side << " d " << d << " " << wrong;
            ASSERT_EQ(kvt_validate_pages(codec.get(), side, page.data(), page.size(), 1), KVT_ERROR_CORRUPT_PAGE);

            // A row of zeros leaves codes 0 and the neighbours' bytes.
            std::vector<uint8_t> zero = before;
            encode(codec.get(), side, std::vector<float>(d), d, {kCell}, zero);
            ASSERT_EQ(std::memcmp(page.data(), zero.data(), norm_offset), 0) << kvt_codec_name(id) << " side " << side;
            for (int64_t cell = 0; cell < 64 * static_cast<int64_t>(norm_parts(id, side)); ++cell)
              if (cell % 64 != kCell) {
                ASSERT_EQ(std::memcmp(page.data() + norm_offset + 2 * cell, before.data() + norm_offset + 2 * cell, 2), 0);
              }
            for (const char* name : {"scalar", "avx2", "avxvnni", "avx512", "neon"}) {
              const kvt::cpu::KernelTable* kernels = kvt::cpu::find_kernels(name);
              if (kernels == nullptr) continue;
              std::vector<uint8_t> other = before;
              kernels->encode_row(kvt::make_side_layout(id, side, d), row.data(), other.data(), kCell);
              ASSERT_EQ(other, page) << name << " " << kvt_codec_name(id) << " side " << side << " d " << d << " " << wrong;
            }
            const std::vector<float> decoded = decode_rows(codec.get(), side, page, 64, d);
            const std::vector<float> decoded_before = decode_rows(codec.get(), side, before, 64, d);
            for (size_t i = 0; i < decoded.size(); ++i) {
              if (i / d == kCell) {
                ASSERT_TRUE(std::isnan(decoded[i]));
              } else {
                ASSERT_EQ(decoded[i], decoded_before[i]);
              }
            }
          }
        }
}

// f16 keeps what a half can: NaN stays NaN, beyond 65504 the infinity (65520 is the tie that rounds up).
TEST_F(EngineEncode, HalvesKeepNanAndInfinity) {
  const CodecPtr codec = make_codec(KVT_CODEC_F16, 64, 64);
  std::vector<float> row(64, 1.0f);
  const float wrong[] = {kNan, kInf, -kInf, 65504.0f, 65519.0f, 65520.0f, -1e30f};
  std::copy(std::begin(wrong), std::end(wrong), row.begin());
  for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
    std::vector<uint8_t> page(kvt_page_bytes(codec.get(), side));
    encode(codec.get(), side, row, 64, {63}, page);
    const std::vector<float> all = decode_rows(codec.get(), side, page, 64, 64);
    const float* x = all.data() + size_t{63} * 64;
    EXPECT_TRUE(std::isnan(x[0]));
    const float expected[] = {kInf, -kInf, 65504.0f, 65504.0f, kInf, -kInf, 1.0f, 1.0f};
    for (size_t i = 0; i < std::size(expected); ++i) EXPECT_EQ(x[i + 1], expected[i]) << i;
  }
}

// The bytes of format/half.h in every table: NaNs of any payload become one NaN, ties go to even, the subnormal range rounds.
TEST_F(EngineEncode, HalvesAreTheSameInEveryTable) {
  const uint32_t patterns[] = {0x7f800001, 0xff812345, 0x7fc00000, 0xffffffff, 0x7f800000, 0xff800000, 0x00000000, 0x80000000,
                               0x00000001, 0x33000000, 0x33000001, 0x387fe000, 0x38800000, 0x3f801000, 0x3f803000, 0x477fefff,
                               0x477ff000, 0xc7800000};
  std::vector<float> row(80);
  for (size_t i = 0; i < row.size(); ++i) std::memcpy(&row[i], &patterns[i % std::size(patterns)], 4);
  const kvt::SideLayout layout = kvt::make_side_layout(KVT_CODEC_F16, KVT_KEY, 80);
  std::vector<uint8_t> expected(layout.page_bytes);
  kvt::cpu::find_kernels("scalar")->encode_row(layout, row.data(), expected.data(), 5);
  for (const char* name : {"avx2", "avxvnni", "avx512", "neon"}) {
    const kvt::cpu::KernelTable* kernels = kvt::cpu::find_kernels(name);
    if (kernels == nullptr) continue;
    std::vector<uint8_t> page(layout.page_bytes);
    kernels->encode_row(layout, row.data(), page.data(), 5);
    EXPECT_EQ(page, expected) << name;
  }
}

// Two kv heads, four queries. NaN rows of head 1 at cells 40 and 100: query 0 removes both, query 1 sees 40, query 2 sees 100,
// query 3 sees both. Rows that see one are NaN; the others, and all of head 0, are bit for bit what they are without NaN.
class NanCells {
 public:
  static constexpr uint32_t kDim = 80, kCells = 150, kGroup = 3, kQueries = 4, kHeads = 2 * kGroup;

  NanCells(kvt_codec_id id, bool in_keys, bool in_values, float wrong) : codec_(make_codec(id, kDim, kDim)) {
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
      const size_t bytes = pages_for(kCells) * kvt_page_bytes(codec_.get(), side);
      std::vector<float> rows[2];
      for (uint32_t head = 0; head < 2; ++head) rows[head] = gaussian_rows(31 + 2 * side + head, kCells, kDim);
      for (const size_t cell : {size_t{40}, size_t{100}})
        if (side == KVT_KEY ? in_keys : in_values) {
          // One value spoils a coded row; f16 has no norm, so the whole row.
          const size_t n = id == KVT_CODEC_F16 ? kDim : 1;
          std::fill_n(rows[1].begin() + static_cast<ptrdiff_t>(cell * kDim), n, wrong);
        }
      std::vector<uint8_t>& pages = side == KVT_KEY ? k_ : v_;
      for (const auto& head_rows : rows) {
        std::vector<uint8_t> part(bytes);
        encode(codec_.get(), side, head_rows, kDim, cells_from(0, kCells), part);
        pages.insert(pages.end(), part.begin(), part.end());
      }
    }
    mask_.assign(kQueries * kCells, 0);
    const auto remove = [&](size_t query, size_t cell) { mask_[query * kCells + cell] = 0xFC00; };
    remove(0, 40), remove(0, 100), remove(1, 100), remove(2, 40);
  }

  std::vector<float> run(uint32_t n_threads) const {
    const std::vector<float> q = gaussian_rows(41, kQueries * kHeads, kDim);
    std::vector<float> out(q.size(), 7.0f);
    kvt_attention a{};
    a.struct_size = sizeof a;
    a.n_streams = 1;
    a.n_kv_heads = 2;
    a.n_group = kGroup;
    a.n_queries = kQueries;
    a.n_cells = kCells;
    a.k_pages = k_.data();
    a.k_page_stride = kvt_page_bytes(codec_.get(), KVT_KEY);
    a.k_head_stride = k_.size() / 2;
    a.v_pages = v_.data();
    a.v_page_stride = kvt_page_bytes(codec_.get(), KVT_VALUE);
    a.v_head_stride = v_.size() / 2;
    a.q = q.data();
    a.out = out.data();
    a.q_head_stride = a.out_head_stride = kDim * sizeof(float);
    a.q_query_stride = a.out_query_stride = kHeads * kDim * sizeof(float);
    a.mask = mask_.data();
    a.mask_query_stride = kCells * sizeof(uint16_t);
    a.scale = 0.1f;
    a.out = out.data();
    std::vector<uint8_t> memory(kvt_attend_workspace_bytes(codec_.get(), &a, n_threads) + 64);
    void* workspace = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    for (uint32_t thread = 0; thread < n_threads; ++thread)
      EXPECT_EQ(kvt_attend_thread(codec_.get(), &a, workspace, thread, n_threads), KVT_OK);
    return out;
  }

 private:
  CodecPtr codec_;
  std::vector<uint8_t> k_, v_;
  std::vector<uint16_t> mask_;
};

TEST_F(EngineEncode, NanCellsReachOnlyRowsThatSeeThem) {
  const std::pair<bool, bool> sides[] = {{true, false}, {false, true}, {true, true}};
  for (const kvt_codec_id id : kCodecs)
    for (const float wrong : {kNan, kInf})
      for (const auto& [in_keys, in_values] : sides)
        for (const uint32_t n_threads : {1u, 2u, 3u}) {
          if (id == KVT_CODEC_F16 && wrong == kInf) continue;  // an fp16 infinity is not a NaN: its scores may be -inf
          SCOPED_TRACE(std::string(kvt_codec_name(id)) + (in_keys ? " K" : "") + (in_values ? " V" : "") + " threads " +
                       std::to_string(n_threads));
          const std::vector<float> clean = NanCells(id, false, false, 0).run(n_threads);
          const std::vector<float> out = NanCells(id, in_keys, in_values, wrong).run(n_threads);
          for (size_t i = 0; i < out.size(); ++i) {
            const size_t head = i / NanCells::kDim % NanCells::kHeads;
            const size_t query = i / NanCells::kDim / NanCells::kHeads;
            if (query > 0 && head >= NanCells::kGroup) {
              ASSERT_TRUE(std::isnan(out[i])) << "query " << query << " head " << head << " dim " << i % NanCells::kDim;
            } else {
              ASSERT_EQ(out[i], clean[i]) << "query " << query << " head " << head << " dim " << i % NanCells::kDim;
            }
          }
        }
}

}  // namespace
}  // namespace kvt_test
