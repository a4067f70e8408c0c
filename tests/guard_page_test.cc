// No kernel touches a byte outside its buffers: every buffer of an encoding and of an attention ends at, or begins after, memory
// that may not be read or written, so one byte too many is a crash. Prefetches past the end are allowed: they do not fault.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "test_support.h"

namespace kvt_test {
namespace {

enum class Side { kBefore, kAfter };  // where the forbidden memory touches the buffer

// Zeroed memory between two forbidden pages.
class GuardedBuffer {
 public:
  GuardedBuffer(size_t bytes, Side guard) : bytes_(bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t inner = (bytes + page - 1) / page * page;
    mapped_bytes_ = inner + 2 * page;
    mapped_ = static_cast<uint8_t*>(mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(mapped_, MAP_FAILED);
    EXPECT_EQ(mprotect(mapped_ + page, inner, PROT_READ | PROT_WRITE), 0);
    data_ = mapped_ + page + (guard == Side::kAfter ? inner - bytes : 0);
  }
  GuardedBuffer(const void* from, size_t bytes, Side guard) : GuardedBuffer(bytes, guard) { std::memcpy(data_, from, bytes); }
  ~GuardedBuffer() { munmap(mapped_, mapped_bytes_); }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* mapped_;
  size_t mapped_bytes_;
  uint8_t* data_;
  size_t bytes_;
};

struct Case {
  kvt_codec_id codec;
  uint32_t d_k, d_v, n_group, n_queries, n_cells, n_exact;
  bool mask;
  std::string name() const {
    return std::string(kvt_codec_name(codec)) + " d " + std::to_string(d_k) + "/" + std::to_string(d_v) + " group " +
           std::to_string(n_group) + " queries " + std::to_string(n_queries) + " cells " + std::to_string(n_cells) +
           (mask ? " mask" : "");
  }
};

void check(const Case& c, Side guard) {
  const CodecPtr codec = make_codec(c.codec, c.d_k, c.d_v);
  const size_t n_pages = pages_for(c.n_cells), n_rows = size_t{c.n_group} * c.n_queries;
  const std::vector<int64_t> cells = cells_from(0, c.n_cells);
  auto encode = [&](kvt_side side, uint32_t d, const GuardedBuffer& pages) {
    const std::vector<float> rows = gaussian_rows(side + 1, c.n_cells, d);
    const GuardedBuffer source(rows.data(), rows.size() * sizeof(float), guard);
    ASSERT_EQ(kvt_encode(codec.get(), side, source.as<float>(), d, c.n_cells, cells.data(), pages.as<void>(),
                         kvt_page_bytes(codec.get(), side)),
              KVT_OK);
  };
  const size_t k_bytes = kvt_page_bytes(codec.get(), KVT_KEY), v_bytes = kvt_page_bytes(codec.get(), KVT_VALUE);
  const GuardedBuffer k_pages(n_pages * k_bytes, guard), v_pages(n_pages * v_bytes, guard);
  encode(KVT_KEY, c.d_k, k_pages);
  encode(KVT_VALUE, c.d_v, v_pages);
  const std::vector<float> queries = gaussian_rows(3, n_rows, c.d_k);
  const GuardedBuffer q(queries.data(), queries.size() * sizeof(float), guard), out(n_rows * c.d_v * sizeof(float), guard);
  const GuardedBuffer mask(size_t{c.n_queries} * c.n_cells * 2, guard);  // zeros: every cell is seen
  const GuardedBuffer exact_k(std::max<size_t>(1, size_t{c.n_exact} * c.d_k * 2), guard),
      exact_v(std::max<size_t>(1, size_t{c.n_exact} * c.d_v * 2), guard);

  kvt_attention a{};
  a.struct_size = sizeof a;
  a.n_streams = a.n_kv_heads = 1;
  a.n_group = c.n_group;
  a.n_queries = c.n_queries;
  a.n_cells = c.n_cells;
  a.k_pages = k_pages.as<void>();
  a.k_page_stride = k_bytes;
  a.v_pages = v_pages.as<void>();
  a.v_page_stride = v_bytes;
  a.q = q.as<float>();
  a.q_head_stride = c.d_k * sizeof(float);
  a.q_query_stride = c.n_group * a.q_head_stride;
  a.mask = c.mask ? mask.as<uint16_t>() : nullptr;
  a.mask_query_stride = size_t{c.n_cells} * 2;
  a.scale = 0.1f;
  a.out = out.as<float>();
  a.out_head_stride = c.d_v * sizeof(float);
  a.out_query_stride = c.n_group * a.out_head_stride;
  a.n_exact = c.n_exact;
  a.exact_k = exact_k.as<uint16_t>();
  a.exact_v = exact_v.as<uint16_t>();
  for (const uint32_t n_threads : {1u, 2u}) {
    const GuardedBuffer workspace(kvt_attend_workspace_bytes(codec.get(), &a, n_threads), guard);
    ASSERT_EQ(workspace.bytes() % 64, 0u);  // else the guarded end would not be 64-byte aligned
    for (uint32_t thread = 0; thread < n_threads; ++thread) {
      ASSERT_EQ(kvt_attend_thread(codec.get(), &a, workspace.as<void>(), thread, n_threads), KVT_OK);
    }
    double size = 0;
    for (size_t i = 0; i < n_rows * c.d_v; ++i) {
      ASSERT_TRUE(std::isfinite(out.as<float>()[i])) << c.name();
      size += std::fabs(out.as<float>()[i]);
    }
    EXPECT_TRUE(size > 0 || c.n_exact == c.n_cells) << c.name();  // exact values are zeros
  }
}

class GuardPages : public IsaTest {};

// The guard works: otherwise the tests below could not fail.
TEST_F(GuardPages, AreForbidden) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const GuardedBuffer after(100, Side::kAfter), before(100, Side::kBefore);
  EXPECT_DEATH(*const_cast<volatile uint8_t*>(after.as<uint8_t>() + 100) = 1, "");
  EXPECT_DEATH(*const_cast<volatile uint8_t*>(before.as<uint8_t>() - 1) = 1, "");
}

// Each head dim with each codec; lengths: one cell, around one page, and three pages of which the last is partial.
TEST_F(GuardPages, EveryCodecHeadDimAndLength) {
  for (const kvt_codec_id codec : kCodecs)
    for (const uint32_t d : kHeadDims)
      for (const uint32_t n_cells : {1u, 63u, 64u, 65u, 130u})
        for (const Side guard : {Side::kBefore, Side::kAfter}) check({codec, d, d, 1, 1, n_cells, 0, true}, guard);
}

// Every path for a number of rows: 1 to 4 in registers, more through scratch, blocks of four and their rest, the most rows of a pass.
TEST_F(GuardPages, EveryNumberOfRows) {
  for (const kvt_codec_id codec : kCodecs)
    for (const uint32_t n_group : {1u, 2u, 3u, 4u, 5u, 7u, 8u, 16u})
      for (const uint32_t n_queries : {1u, 3u, 8u})
        for (const bool mask : {false, true})
          for (const Side guard : {Side::kBefore, Side::kAfter}) check({codec, 128, 64, n_group, n_queries, 100, 0, mask}, guard);
}

TEST_F(GuardPages, ExactRows) {
  for (const kvt_codec_id codec : kCodecs) {
    if (codec == KVT_CODEC_F16) continue;
    for (const uint32_t n_cells : {4u, 70u})
      for (const Side guard : {Side::kBefore, Side::kAfter}) check({codec, 80, 112, 3, 2, n_cells, 4, true}, guard);
  }
}

}  // namespace
}  // namespace kvt_test
