// Statuses of every function of the C API on wrong arguments, and that a failed call leaves its outputs as they were.

#include <algorithm>
#include <cstring>
#include <set>

#include "test_support.h"

namespace kvt_test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// A number as a C caller may pass it. Copied, since C++ may refuse to convert what no enumerator needs.
kvt_codec_id codec_number(int number) {
  kvt_codec_id id;
  static_assert(sizeof id == sizeof number);
  std::memcpy(&id, &number, sizeof id);
  return id;
}
const kvt_codec_id kUnknownCodec = codec_number(9);

class Api : public IsaTest {};

TEST_F(Api, Version) {
  const std::string expected =
      std::to_string(KVT_VERSION_MAJOR) + "." + std::to_string(KVT_VERSION_MINOR) + "." + std::to_string(KVT_VERSION_PATCH);
  EXPECT_EQ(kvt_version(), expected);
}

TEST_F(Api, StatusStrings) {
  const kvt_status all[] = {KVT_OK,
                            KVT_ERROR_INVALID_ARGUMENT,
                            KVT_ERROR_UNKNOWN_CODEC,
                            KVT_ERROR_HEAD_DIM,
                            KVT_ERROR_CELL_RANGE,
                            KVT_ERROR_NOT_FINITE,
                            KVT_ERROR_DST_TOO_SMALL,
                            KVT_ERROR_OVERFLOW,
                            KVT_ERROR_BAD_MAGIC,
                            KVT_ERROR_BAD_VERSION,
                            KVT_ERROR_BAD_FIELD,
                            KVT_ERROR_CORRUPT_PAGE,
                            KVT_ERROR_TRUNCATED,
                            KVT_ERROR_NO_MEMORY,
                            KVT_ERROR_UNSUPPORTED_ISA};
  std::set<std::string> seen;
  for (const kvt_status status : all) {
    const char* text = kvt_status_string(status);
    ASSERT_NE(text, nullptr);
    EXPECT_TRUE(seen.insert(text).second) << text;
    EXPECT_EQ(std::strchr(text, '\n'), nullptr) << text;
  }
  ASSERT_NE(kvt_status_string(static_cast<kvt_status>(29)), nullptr);
}

TEST_F(Api, CodecNames) {
  const char* names[] = {"f16", "hybrid", "scalar43", "k4v3", "k3v3", "k3v2", "k2v2", "k8v4", "k8v3"};
  int id = 0;
  for (; kvt_codec_name(codec_number(id)) != nullptr; ++id) {
    ASSERT_LT(id, 9);
    EXPECT_STREQ(kvt_codec_name(codec_number(id)), names[id]);
    kvt_codec_id parsed = kUnknownCodec;
    EXPECT_EQ(kvt_codec_from_name(names[id], &parsed), KVT_OK);
    EXPECT_EQ(parsed, id);
  }
  EXPECT_EQ(id, 9);
  for (const char* wrong : {"", "F16", "hybrid ", "scalar4", "scalar433", "k4v33", "k4", "k8v2"}) {
    kvt_codec_id unchanged = KVT_CODEC_SCALAR43;
    EXPECT_EQ(kvt_codec_from_name(wrong, &unchanged), KVT_ERROR_UNKNOWN_CODEC) << wrong;
    EXPECT_EQ(unchanged, KVT_CODEC_SCALAR43);
  }
  kvt_codec_id unchanged = KVT_CODEC_HYBRID;
  EXPECT_EQ(kvt_codec_from_name(nullptr, &unchanged), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(unchanged, KVT_CODEC_HYBRID);
  EXPECT_EQ(kvt_codec_from_name("f16", nullptr), KVT_ERROR_INVALID_ARGUMENT);
}

TEST_F(Api, CodecCreate) {
  int marker = 0;
  auto* const untouched = reinterpret_cast<kvt_codec*>(&marker);
  kvt_codec* codec = untouched;
  EXPECT_EQ(kvt_codec_create(kUnknownCodec, 64, 64, &codec), KVT_ERROR_UNKNOWN_CODEC);
  for (const uint32_t wrong : {0u, 1u, 32u, 63u, 65u, 72u, 127u, 160u, 255u, 257u, 512u, UINT32_MAX}) {
    EXPECT_EQ(kvt_codec_create(KVT_CODEC_HYBRID, wrong, 64, &codec), KVT_ERROR_HEAD_DIM) << wrong;
    EXPECT_EQ(kvt_codec_create(KVT_CODEC_HYBRID, 64, wrong, &codec), KVT_ERROR_HEAD_DIM) << wrong;
  }
  EXPECT_EQ(codec, untouched);
  EXPECT_EQ(kvt_codec_create(KVT_CODEC_F16, 64, 64, nullptr), KVT_ERROR_INVALID_ARGUMENT);
  kvt_codec_destroy(nullptr);
  for (const kvt_codec_id id : kCodecs)
    for (const uint32_t d_k : kHeadDims)
      for (const uint32_t d_v : kHeadDims) {
        const CodecPtr made = make_codec(id, d_k, d_v);
        ASSERT_NE(made, nullptr);
        EXPECT_EQ(kvt_page_bytes(made.get(), KVT_KEY), kvt_page_bytes_for(id, KVT_KEY, d_k));
        EXPECT_EQ(kvt_page_bytes(made.get(), KVT_VALUE), kvt_page_bytes_for(id, KVT_VALUE, d_v));
      }
}

TEST_F(Api, Isa) {
  const CodecPtr codec = make_codec(KVT_CODEC_F16, 64, 64);
  ASSERT_NE(kvt_codec_isa(codec.get()), nullptr);
  const char* forced = std::getenv("KVTURBO_ISA");
  if (forced != nullptr && *forced != '\0') {
    EXPECT_STREQ(kvt_codec_isa(codec.get()), forced);
  }
}

// format.md section 1.
TEST_F(Api, PageBytes) {
  const size_t f16[] = {8192, 10240, 12288, 14336, 16384, 24576, 32768};
  const size_t hybrid_k[] = {2304, 2816, 3328, 3840, 4352, 6400, 8448};
  const size_t scalar43_k[] = {2176, 2688, 3200, 3712, 4224, 6272, 8320};
  const size_t v[] = {1664, 2176, 2688, 3200, 3200, 4736, 6272};
  const size_t k3[] = {1664, 2176, 2432, 2944, 3200, 4736, 6272};
  const size_t k2[] = {1152, 1408, 1664, 1920, 2176, 3200, 4224};
  const size_t k8[] = {4224, 5248, 6272, 7296, 8320, 12416, 16512};
  const size_t v2[] = {1152, 1664, 1664, 2176, 2176, 3200, 4224};
  for (size_t i = 0; i < std::size(kHeadDims); ++i) {
    EXPECT_EQ(kvt_page_bytes_for(KVT_CODEC_F16, KVT_KEY, kHeadDims[i]), f16[i]);
    EXPECT_EQ(kvt_page_bytes_for(KVT_CODEC_F16, KVT_VALUE, kHeadDims[i]), f16[i]);
    EXPECT_EQ(kvt_page_bytes_for(KVT_CODEC_HYBRID, KVT_KEY, kHeadDims[i]), hybrid_k[i]);
    EXPECT_EQ(kvt_page_bytes_for(KVT_CODEC_HYBRID, KVT_VALUE, kHeadDims[i]), v[i]);
    EXPECT_EQ(kvt_page_bytes_for(KVT_CODEC_SCALAR43, KVT_KEY, kHeadDims[i]), scalar43_k[i]);
    EXPECT_EQ(kvt_page_bytes_for(KVT_CODEC_SCALAR43, KVT_VALUE, kHeadDims[i]), v[i]);
    EXPECT_EQ(kvt_page_bytes_for(KVT_CODEC_K4V3, KVT_KEY, kHeadDims[i]), scalar43_k[i]);
    EXPECT_EQ(kvt_page_bytes_for(KVT_CODEC_K4V3, KVT_VALUE, kHeadDims[i]), v[i]);
    for (const kvt_codec_id id : {KVT_CODEC_K3V3, KVT_CODEC_K3V2})
      EXPECT_EQ(kvt_page_bytes_for(id, KVT_KEY, kHeadDims[i]), k3[i]);
    for (const kvt_codec_id id : {KVT_CODEC_K8V4, KVT_CODEC_K8V3})
      EXPECT_EQ(kvt_page_bytes_for(id, KVT_KEY, kHeadDims[i]), k8[i]);
    for (const kvt_codec_id id : {KVT_CODEC_K3V3, KVT_CODEC_K8V3})
      EXPECT_EQ(kvt_page_bytes_for(id, KVT_VALUE, kHeadDims[i]), v[i]);
    for (const kvt_codec_id id : {KVT_CODEC_K3V2, KVT_CODEC_K2V2})
      EXPECT_EQ(kvt_page_bytes_for(id, KVT_VALUE, kHeadDims[i]), v2[i]);
    EXPECT_EQ(kvt_page_bytes_for(KVT_CODEC_K2V2, KVT_KEY, kHeadDims[i]), k2[i]);
    EXPECT_EQ(kvt_page_bytes_for(KVT_CODEC_K8V4, KVT_VALUE, kHeadDims[i]), scalar43_k[i]);
  }
  EXPECT_EQ(kvt_page_bytes_for(kUnknownCodec, KVT_KEY, 64), 0u);
  EXPECT_EQ(kvt_page_bytes_for(KVT_CODEC_F16, KVT_KEY, 65), 0u);
  EXPECT_EQ(kvt_page_bytes_for(KVT_CODEC_F16, KVT_KEY, 0), 0u);
  EXPECT_EQ(kvt_page_bytes(nullptr, KVT_KEY), 0u);
}

TEST_F(Api, EncodeRefusesAndLeavesPagesAlone) {
  for (const kvt_codec_id id : kCodecs)
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
      const CodecPtr owner = make_codec(id, 80, 80);
      const kvt_codec* codec = owner.get();
      const size_t bytes = kvt_page_bytes(codec, side);
      const std::vector<float> rows = gaussian_rows(3, 4, 80);
      std::vector<uint8_t> pages = encode_rows(codec, side, gaussian_rows(4, 128, 80), 80);
      const std::vector<uint8_t> before = pages;
      const int64_t cells[] = {0, 70, 16, 1};
      const auto encode = [&](const float* src, size_t stride, const int64_t* at, void* to, size_t page_stride) {
        return kvt_encode(codec, side, src, stride, 4, at, to, page_stride);
      };
      EXPECT_EQ(kvt_encode(nullptr, side, rows.data(), 80, 4, cells, pages.data(), bytes), KVT_ERROR_INVALID_ARGUMENT);
      EXPECT_EQ(encode(nullptr, 80, cells, pages.data(), bytes), KVT_ERROR_INVALID_ARGUMENT);
      EXPECT_EQ(encode(rows.data(), 79, cells, pages.data(), bytes), KVT_ERROR_INVALID_ARGUMENT);
      EXPECT_EQ(encode(rows.data(), 80, nullptr, pages.data(), bytes), KVT_ERROR_INVALID_ARGUMENT);
      EXPECT_EQ(encode(rows.data(), 80, cells, nullptr, bytes), KVT_ERROR_INVALID_ARGUMENT);
      EXPECT_EQ(encode(rows.data(), 80, cells, pages.data(), bytes - 1), KVT_ERROR_INVALID_ARGUMENT);
      for (const int64_t wrong : {int64_t{-1}, INT64_MIN}) {
        const int64_t bad[] = {0, 70, 16, wrong};
        EXPECT_EQ(encode(rows.data(), 80, bad, pages.data(), bytes), KVT_ERROR_CELL_RANGE);
      }
      // In the last value of the last row: the rows before it must not have been written.
      for (const float wrong : {kNan, kInf, -kInf}) {
        std::vector<float> broken = rows;
        broken.back() = wrong;
        EXPECT_EQ(encode(broken.data(), 80, cells, pages.data(), bytes), KVT_ERROR_NOT_FINITE);
      }
      // Finite values whose squared norm overflows fp32, or that a half cannot hold (format.md section 5, steps 2 and 6).
      std::vector<float> bad = rows;
      bad.back() = id == KVT_CODEC_F16 ? 65505.0f : 3e19f;
      EXPECT_EQ(encode(bad.data(), 80, cells, pages.data(), bytes), KVT_ERROR_NOT_FINITE);
      EXPECT_EQ(pages, before);
      EXPECT_EQ(kvt_encode(codec, side, rows.data(), 80, 0, cells, pages.data(), bytes), KVT_OK);
      EXPECT_EQ(pages, before);
      // Values between rows of a wider array are not looked at.
      std::vector<float> wide(4 * 83, kNan);
      for (size_t i = 0; i < 4; ++i) std::copy(rows.begin() + i * 80, rows.begin() + (i + 1) * 80, wide.begin() + i * 83);
      std::vector<uint8_t> expected = before;
      EXPECT_EQ(encode(wide.data(), 83, cells, pages.data(), bytes), KVT_OK);
      EXPECT_EQ(encode(rows.data(), 80, cells, expected.data(), bytes), KVT_OK);
      EXPECT_EQ(pages, expected);
    }
}

TEST_F(Api, LaterRowsStay) {
  for (const kvt_codec_id id : kCodecs)
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
      const CodecPtr codec = make_codec(id, 64, 64);
      const size_t bytes = kvt_page_bytes(codec.get(), side);
      const std::vector<float> rows = gaussian_rows(8, 3, 64);
      const int64_t cells[] = {5, 6, 5};
      const int64_t last[] = {6, 5};
      std::vector<uint8_t> page(bytes), expected(bytes);
      EXPECT_EQ(kvt_encode(codec.get(), side, rows.data(), 64, 3, cells, page.data(), bytes), KVT_OK);
      EXPECT_EQ(kvt_encode(codec.get(), side, rows.data() + 64, 64, 2, last, expected.data(), bytes), KVT_OK);
      EXPECT_EQ(page, expected);
    }
}

TEST_F(Api, NormAboveHalfRange) {
  for (const kvt_codec_id id : {KVT_CODEC_HYBRID, KVT_CODEC_SCALAR43, KVT_CODEC_K4V3})
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
      const CodecPtr codec = make_codec(id, 128, 128);
      const std::vector<uint8_t> page = encode_rows(codec.get(), side, gaussian_rows(9, 1, 128, 1e9), 128);
      EXPECT_EQ(kvt_validate_pages(codec.get(), side, page.data(), page.size(), 1), KVT_OK);
      for (const float x : decode_rows(codec.get(), side, page, 1, 128)) EXPECT_TRUE(std::isfinite(x));
    }
}

TEST_F(Api, DecodeRefuses) {
  for (const kvt_codec_id id : kCodecs)
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
      const CodecPtr owner = make_codec(id, 96, 96);
      const kvt_codec* codec = owner.get();
      const size_t bytes = kvt_page_bytes(codec, side);
      const std::vector<uint8_t> pages = encode_rows(codec, side, gaussian_rows(4, 128, 96), 96);
      std::vector<float> out(4 * 96, 7.0f);
      EXPECT_EQ(kvt_decode(nullptr, side, pages.data(), bytes, 0, 4, out.data(), 96), KVT_ERROR_INVALID_ARGUMENT);
      EXPECT_EQ(kvt_decode(codec, side, nullptr, bytes, 0, 4, out.data(), 96), KVT_ERROR_INVALID_ARGUMENT);
      EXPECT_EQ(kvt_decode(codec, side, pages.data(), bytes - 1, 0, 4, out.data(), 96), KVT_ERROR_INVALID_ARGUMENT);
      EXPECT_EQ(kvt_decode(codec, side, pages.data(), bytes, 0, 4, nullptr, 96), KVT_ERROR_INVALID_ARGUMENT);
      EXPECT_EQ(kvt_decode(codec, side, pages.data(), bytes, 0, 4, out.data(), 95), KVT_ERROR_INVALID_ARGUMENT);
      EXPECT_EQ(kvt_decode(codec, side, pages.data(), bytes, 0, 0, out.data(), 96), KVT_OK);
      EXPECT_TRUE(std::all_of(out.begin(), out.end(), [](float x) { return x == 7.0f; }));
      // Across a page boundary.
      const std::vector<float> all = decode_rows(codec, side, pages, 128, 96);
      EXPECT_EQ(kvt_decode(codec, side, pages.data(), bytes, 62, 4, out.data(), 96), KVT_OK);
      EXPECT_TRUE(std::equal(out.begin(), out.end(), all.begin() + 62 * 96));
    }
}

// A page of zeros is valid and decodes to zeros; any bytes decode.
TEST_F(Api, ZeroAndArbitraryPages) {
  for (const kvt_codec_id id : kCodecs)
    for (const kvt_side side : {KVT_KEY, KVT_VALUE})
      for (const uint32_t d : kHeadDims) {
        const CodecPtr codec = make_codec(id, d, d);
        std::vector<uint8_t> page(kvt_page_bytes(codec.get(), side));
        EXPECT_EQ(kvt_validate_pages(codec.get(), side, page.data(), page.size(), 1), KVT_OK);
        for (const float x : decode_rows(codec.get(), side, page, KVT_PAGE_TOKENS, d)) ASSERT_EQ(x, 0.0f);
        for (size_t i = 0; i < page.size(); ++i) page[i] = static_cast<uint8_t>(splitmix64(d, i));
        decode_rows(codec.get(), side, page, KVT_PAGE_TOKENS, d);
        EXPECT_EQ(kvt_validate_pages(codec.get(), side, page.data(), page.size(), 1), KVT_ERROR_CORRUPT_PAGE);
      }
}

TEST_F(Api, ValidateRefuses) {
  const CodecPtr codec = make_codec(KVT_CODEC_HYBRID, 64, 64);
  const size_t bytes = kvt_page_bytes(codec.get(), KVT_KEY);
  const std::vector<uint8_t> pages(bytes);
  EXPECT_EQ(kvt_validate_pages(nullptr, KVT_KEY, pages.data(), bytes, 1), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_validate_pages(codec.get(), KVT_KEY, nullptr, bytes, 1), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_validate_pages(codec.get(), KVT_KEY, pages.data(), bytes - 1, 1), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_validate_pages(codec.get(), KVT_KEY, pages.data(), bytes, 0), KVT_OK);
}

kvt_header valid_header() {
  kvt_header header{};
  header.struct_size = sizeof header;
  header.codec = KVT_CODEC_SCALAR43;
  header.head_dim_k = 192;
  header.head_dim_v = 128;
  header.n_kv_heads = 8;
  header.n_layers = 61;
  header.n_cells = uint64_t{1} << 40;
  header.model_hash = 0xFEDCBA9876543210u;
  return header;
}

TEST_F(Api, HeaderRoundTrip) {
  const kvt_header header = valid_header();
  uint8_t bytes[KVT_HEADER_BYTES + 1];
  std::memset(bytes, 0xEE, sizeof bytes);
  ASSERT_EQ(kvt_header_write(&header, bytes, sizeof bytes), KVT_OK);
  EXPECT_EQ(bytes[KVT_HEADER_BYTES], 0xEE);
  kvt_header read{};
  read.struct_size = sizeof read;
  ASSERT_EQ(kvt_header_read(bytes, sizeof bytes, &read), KVT_OK);
  EXPECT_EQ(std::memcmp(&read, &header, sizeof header), 0);
}

TEST_F(Api, HeaderWriteRefuses) {
  uint8_t bytes[KVT_HEADER_BYTES];
  std::memset(bytes, 0xEE, sizeof bytes);
  const auto write = [&](auto change) {
    kvt_header header = valid_header();
    change(header);
    return kvt_header_write(&header, bytes, sizeof bytes);
  };
  const kvt_header good = valid_header();
  EXPECT_EQ(kvt_header_write(nullptr, bytes, sizeof bytes), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_header_write(&good, nullptr, sizeof bytes), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_header_write(&good, bytes, sizeof bytes - 1), KVT_ERROR_DST_TOO_SMALL);
  EXPECT_EQ(write([](kvt_header& h) { h.struct_size = 0; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(write([](kvt_header& h) { h.codec = kUnknownCodec; }), KVT_ERROR_UNKNOWN_CODEC);
  EXPECT_EQ(write([](kvt_header& h) { h.head_dim_k = 100; }), KVT_ERROR_HEAD_DIM);
  EXPECT_EQ(write([](kvt_header& h) { h.head_dim_v = 0x10040; }), KVT_ERROR_HEAD_DIM);  // its low half is 64
  EXPECT_EQ(write([](kvt_header& h) { h.n_kv_heads = 0; }), KVT_ERROR_BAD_FIELD);
  EXPECT_EQ(write([](kvt_header& h) { h.n_layers = 0; }), KVT_ERROR_BAD_FIELD);
  EXPECT_EQ(write([](kvt_header& h) { h.n_cells = 0; }), KVT_ERROR_BAD_FIELD);
  EXPECT_TRUE(std::all_of(bytes, bytes + sizeof bytes, [](uint8_t b) { return b == 0xEE; }));
}

// Contents: golden_test.cc. Here the arguments.
TEST_F(Api, HeaderReadRefuses) {
  const kvt_header header = valid_header();
  uint8_t bytes[KVT_HEADER_BYTES];
  ASSERT_EQ(kvt_header_write(&header, bytes, sizeof bytes), KVT_OK);
  kvt_header read = valid_header();
  read.n_layers = 3;
  const kvt_header before = read;
  EXPECT_EQ(kvt_header_read(nullptr, sizeof bytes, &read), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_header_read(bytes, sizeof bytes, nullptr), KVT_ERROR_INVALID_ARGUMENT);
  for (size_t n = 0; n < sizeof bytes; ++n) EXPECT_EQ(kvt_header_read(bytes, n, &read), KVT_ERROR_TRUNCATED) << n;
  kvt_header old = valid_header();
  old.struct_size = 4;
  EXPECT_EQ(kvt_header_read(bytes, sizeof bytes, &old), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(std::memcmp(&read, &before, sizeof read), 0);
}

TEST_F(Api, AttendRefuses) {
  const CodecPtr codec = make_codec(KVT_CODEC_HYBRID, 64, 128);
  const std::vector<uint8_t> k = encode_rows(codec.get(), KVT_KEY, gaussian_rows(1, 70, 64), 64);
  const std::vector<uint8_t> v = encode_rows(codec.get(), KVT_VALUE, gaussian_rows(2, 70, 128), 128);
  const std::vector<float> q = gaussian_rows(3, 2, 64);
  std::vector<float> out(2 * 128, 7.0f);
  kvt_attention good{};
  good.struct_size = sizeof good;
  good.n_streams = good.n_kv_heads = good.n_queries = 1;
  good.n_group = 2;
  good.n_cells = 70;
  good.k_pages = k.data();
  good.k_page_stride = kvt_page_bytes(codec.get(), KVT_KEY);
  good.v_pages = v.data();
  good.v_page_stride = kvt_page_bytes(codec.get(), KVT_VALUE);
  good.q = q.data();
  good.q_head_stride = 64 * sizeof(float);
  good.scale = 0.125f;
  good.out = out.data();
  good.out_head_stride = 128 * sizeof(float);
  const size_t bytes = kvt_attend_workspace_bytes(codec.get(), &good, 2);
  ASSERT_GT(bytes, 0u);
  ASSERT_GT(kvt_attend_workspace_bytes(codec.get(), &good, 1), 0u);
  std::vector<uint8_t> memory(bytes + 64);
  void* workspace = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;

  const auto refused = [&](const char* what, auto change) {
    kvt_attention a = good;
    change(a);
    EXPECT_EQ(kvt_attend(codec.get(), &a), KVT_ERROR_INVALID_ARGUMENT) << what;
    EXPECT_EQ(kvt_attend_thread(codec.get(), &a, workspace, 0, 2), KVT_ERROR_INVALID_ARGUMENT) << what;
    EXPECT_EQ(kvt_attend_workspace_bytes(codec.get(), &a, 2), 0u) << what;
  };
  refused("struct_size 0", [](kvt_attention& a) { a.struct_size = 0; });
  refused("struct_size too small", [](kvt_attention& a) { a.struct_size = 8; });
  refused("n_streams", [](kvt_attention& a) { a.n_streams = 0; });
  refused("n_kv_heads", [](kvt_attention& a) { a.n_kv_heads = 0; });
  refused("n_group", [](kvt_attention& a) { a.n_group = 0; });
  refused("n_queries", [](kvt_attention& a) { a.n_queries = 0; });
  refused("k_pages", [](kvt_attention& a) { a.k_pages = nullptr; });
  refused("v_pages", [](kvt_attention& a) { a.v_pages = nullptr; });
  refused("k_page_stride", [](kvt_attention& a) { --a.k_page_stride; });
  refused("v_page_stride", [](kvt_attention& a) { --a.v_page_stride; });
  refused("q", [](kvt_attention& a) { a.q = nullptr; });
  refused("out", [](kvt_attention& a) { a.out = nullptr; });
  EXPECT_EQ(kvt_attend(nullptr, &good), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_attend(codec.get(), nullptr), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_attend_thread(nullptr, &good, workspace, 0, 2), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_attend_thread(codec.get(), nullptr, workspace, 0, 2), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_attend_thread(codec.get(), &good, nullptr, 0, 2), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_attend_thread(codec.get(), &good, workspace, 2, 2), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_attend_thread(codec.get(), &good, workspace, 0, 0), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_attend_workspace_bytes(nullptr, &good, 1), 0u);
  EXPECT_EQ(kvt_attend_workspace_bytes(codec.get(), nullptr, 1), 0u);
  EXPECT_EQ(kvt_attend_workspace_bytes(codec.get(), &good, 0), 0u);
  EXPECT_TRUE(std::all_of(out.begin(), out.end(), [](float x) { return x == 7.0f; }));
  EXPECT_TRUE(std::all_of(memory.begin(), memory.end(), [](uint8_t b) { return b == 0; }));

  // Without cells, no pages are needed.
  kvt_attention empty = good;
  empty.n_cells = 0;
  empty.k_pages = empty.v_pages = nullptr;
  EXPECT_EQ(kvt_attend(codec.get(), &empty), KVT_OK);
  EXPECT_TRUE(std::all_of(out.begin(), out.end(), [](float x) { return x == 0.0f; }));
  EXPECT_EQ(kvt_attend(codec.get(), &good), KVT_OK);
}

}  // namespace
}  // namespace kvt_test
