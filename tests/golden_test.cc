// tests/golden: pages made by scripts/make_golden.py from format.md alone must come out byte for byte and decode for ever.
// tests/golden-errors: damaged pages and headers are refused with the status that the file names.

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "test_support.h"

namespace kvt_test {
namespace {

using Words = std::vector<std::string>;

// A file as lines of words, without comments.
std::vector<Words> read_lines(const std::filesystem::path& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file) << path;
  std::vector<Words> lines;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream in(line);
    Words words;
    for (std::string word; in >> word;) words.push_back(word);
    lines.push_back(words);
  }
  return lines;
}

std::vector<std::filesystem::path> files_in(const char* folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(KVT_TEST_DATA) / folder))
    if (entry.path().extension() == ".txt") paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::vector<uint8_t> from_hex(const std::string& hex) {
  std::vector<uint8_t> bytes;
  if (hex == "-") return bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes.push_back(static_cast<uint8_t>(std::stoul(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

float from_bits(const std::string& hex) {
  const auto bits = static_cast<uint32_t>(std::stoul(hex, nullptr, 16));
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The row of a line `row cell kind arguments`: the formulas of scripts/make_golden.py.
std::vector<float> row_values(const Words& line, size_t d) {
  std::vector<float> x(d);
  const std::string& kind = line[2];
  if (kind == "bell") {
    for (size_t i = 0; i < d; ++i) x[i] = bell(std::stoull(line[3]), i, std::stoi(line[4]));
  } else if (kind == "spread") {
    for (size_t i = 0; i < d; ++i) {
      const uint64_t z = splitmix64(std::stoull(line[3]), i);
      const float size = std::ldexp(static_cast<float>(z >> 1 & 1023), static_cast<int>(z >> 11 & 15) - 20);
      x[i] = z & 1 ? -size : size;
    }
  } else if (kind == "onehot") {
    x[std::stoul(line[3])] = from_bits(line[4]);
  } else if (kind == "constant") {
    std::fill(x.begin(), x.end(), from_bits(line[3]));
  } else if (kind == "alternate") {
    for (size_t i = 0; i < d; ++i) x[i] = i % 2 ? -from_bits(line[3]) : from_bits(line[3]);
  } else if (kind == "ramp") {
    for (size_t i = 0; i < d; ++i)
      x[i] = std::ldexp(static_cast<float>(static_cast<int>(i) - static_cast<int>(d / 2)), std::stoi(line[3]));
  } else if (kind == "pair") {
    x[std::stoul(line[3])] = from_bits(line[5]);
    x[std::stoul(line[4])] = from_bits(line[6]);
  } else {
    EXPECT_EQ(kind, "zero");
  }
  return x;
}

struct GoldenPage {
  std::string name;
  kvt_codec_id codec = KVT_CODEC_F16;
  kvt_side side = KVT_KEY;
  uint32_t head_dim = 0;
  std::vector<int64_t> cells;
  std::vector<float> rows;  // [cells.size(), head_dim]
  std::vector<uint8_t> page;
  std::map<size_t, std::vector<double>> decoded;  // cell -> values at 0, 1, d/2, d-1; length; checksum
};

GoldenPage read_golden(const std::filesystem::path& path) {
  GoldenPage golden;
  golden.name = path.filename().string();
  for (const Words& line : read_lines(path)) {
    if (line[0] == "codec") {
      EXPECT_EQ(kvt_codec_from_name(line[1].c_str(), &golden.codec), KVT_OK) << line[1];
    } else if (line[0] == "side") {
      golden.side = line[1] == "key" ? KVT_KEY : KVT_VALUE;
    } else if (line[0] == "head_dim") {
      golden.head_dim = static_cast<uint32_t>(std::stoul(line[1]));
    } else if (line[0] == "page_bytes") {
      golden.page.resize(std::stoul(line[1]));
    } else if (line[0] == "row") {
      golden.cells.push_back(std::stoll(line[1]));
      const std::vector<float> row = row_values(line, golden.head_dim);
      golden.rows.insert(golden.rows.end(), row.begin(), row.end());
    } else if (line[0] == "bytes") {
      const std::vector<uint8_t> bytes = from_hex(line[2]);
      std::copy(bytes.begin(), bytes.end(), golden.page.begin() + std::stol(line[1]));
    } else if (line[0] == "decoded") {
      std::vector<double>& expected = golden.decoded[std::stoul(line[1])];
      for (size_t i = 2; i < line.size(); ++i) expected.push_back(std::stod(line[i]));
    } else {
      ADD_FAILURE() << golden.name << ": " << line[0];
    }
  }
  return golden;
}

const std::vector<GoldenPage>& golden_pages() {
  static const std::vector<GoldenPage> pages = [] {
    std::vector<GoldenPage> all;
    for (const auto& path : files_in("golden")) all.push_back(read_golden(path));
    return all;
  }();
  return pages;
}

// The first difference, named by its part of the page, so that a failure points into format.md.
std::string first_difference(const GoldenPage& golden, const uint8_t* page) {
  for (size_t i = 0; i < golden.page.size(); ++i) {
    if (page[i] == golden.page[i]) continue;
    const size_t n_norms = golden.codec == KVT_CODEC_F16                                ? 0
                           : golden.codec == KVT_CODEC_HYBRID && golden.side == KVT_KEY ? 2
                                                                                        : 1;
    const size_t code_bytes = golden.page.size() - 128 * n_norms;
    std::ostringstream text;
    text << golden.name << ": byte " << i << " is " << std::hex << +page[i] << ", not " << +golden.page[i] << std::dec;
    if (i >= code_bytes) text << " (norm part " << (i - code_bytes) / 128 << ", cell " << (i - code_bytes) % 128 / 2 << ")";
    return text.str();
  }
  return "";
}

class Golden : public IsaTest {};

// k3v2 and k8v3 are made of the sides of other codecs: MixedCodecs.
TEST_F(Golden, AllFilesAreThere) { EXPECT_EQ(golden_pages().size(), (std::size(kCodecs) - 2) * 2 * std::size(kHeadDims)); }

TEST_F(Golden, MixedCodecs) {
  const struct {
    kvt_codec_id codec, key_of, value_of;
  } mixed[] = {{KVT_CODEC_K3V2, KVT_CODEC_K3V3, KVT_CODEC_K2V2}, {KVT_CODEC_K8V3, KVT_CODEC_K8V4, KVT_CODEC_K3V3}};
  for (const auto& m : mixed)
    for (const kvt_side side : {KVT_KEY, KVT_VALUE})
      for (const uint32_t d : kHeadDims) {
        const CodecPtr codec = make_codec(m.codec, d, d), other = make_codec(side == KVT_KEY ? m.key_of : m.value_of, d, d);
        const std::vector<float> rows = gaussian_rows(3, 70, d);
        const std::vector<uint8_t> pages = encode_rows(codec.get(), side, rows, d);
        EXPECT_EQ(pages, encode_rows(other.get(), side, rows, d)) << kvt_codec_name(m.codec) << " side " << side << " d " << d;
        EXPECT_EQ(decode_rows(codec.get(), side, pages, 70, d), decode_rows(other.get(), side, pages, 70, d));
      }
}

TEST_F(Golden, EncodesTheSameBytes) {
  for (const GoldenPage& golden : golden_pages()) {
    const CodecPtr codec = make_codec(golden.codec, golden.head_dim, golden.head_dim);
    ASSERT_EQ(kvt_page_bytes(codec.get(), golden.side), golden.page.size()) << golden.name;
    std::vector<uint8_t> page(golden.page.size());
    ASSERT_EQ(kvt_encode(codec.get(), golden.side, golden.rows.data(), golden.head_dim, golden.cells.size(),
                         golden.cells.data(), page.data(), page.size()),
              KVT_OK)
        << golden.name;
    EXPECT_EQ(first_difference(golden, page.data()), "");
  }
}

// One row a call, into page 2 of a strided array at an odd address: strides, alignment and neighbours do not matter.
TEST_F(Golden, EncodesTheSameBytesRowByRowUnaligned) {
  for (const GoldenPage& golden : golden_pages()) {
    const CodecPtr codec = make_codec(golden.codec, golden.head_dim, golden.head_dim);
    const size_t bytes = golden.page.size();
    const size_t stride = bytes + 5;
    std::vector<uint8_t> memory(3 * stride + 1, 0xA5);
    uint8_t* pages = memory.data() + 1;
    std::fill(pages + 2 * stride, pages + 2 * stride + bytes, uint8_t{0});
    for (size_t i = 0; i < golden.cells.size(); ++i) {
      const int64_t cell = golden.cells[i] + 2 * KVT_PAGE_TOKENS;
      const float* row = golden.rows.data() + i * golden.head_dim;
      ASSERT_EQ(kvt_encode(codec.get(), golden.side, row, golden.head_dim, 1, &cell, pages, stride), KVT_OK);
    }
    EXPECT_EQ(first_difference(golden, pages + 2 * stride), "");
    std::fill(pages + 2 * stride, pages + 2 * stride + bytes, uint8_t{0xA5});
    EXPECT_TRUE(std::all_of(memory.begin(), memory.end(), [](uint8_t b) { return b == 0xA5; })) << golden.name;
  }
}

// A cell that is rewritten keeps nothing of its old codes, and its neighbours keep all of theirs.
TEST_F(Golden, OverwritesCells) {
  for (const GoldenPage& golden : golden_pages()) {
    const CodecPtr codec = make_codec(golden.codec, golden.head_dim, golden.head_dim);
    const size_t d = golden.head_dim;
    std::vector<float> noise(golden.rows.size());
    for (size_t i = 0; i < noise.size(); ++i) noise[i] = bell(99, i, -15);
    std::vector<uint8_t> page = golden.page;
    ASSERT_EQ(kvt_encode(codec.get(), golden.side, noise.data(), d, golden.cells.size(), golden.cells.data(), page.data(),
                         page.size()),
              KVT_OK);
    EXPECT_NE(page, golden.page) << golden.name;
    ASSERT_EQ(kvt_encode(codec.get(), golden.side, golden.rows.data(), d, golden.cells.size(), golden.cells.data(), page.data(),
                         page.size()),
              KVT_OK);
    EXPECT_EQ(first_difference(golden, page.data()), "");
  }
}

// Bound: fp32 sums of d terms in log2(d) + 7 levels err by about 1e-6 of the vector's length.
TEST_F(Golden, Decodes) {
  for (const GoldenPage& golden : golden_pages()) {
    const CodecPtr codec = make_codec(golden.codec, golden.head_dim, golden.head_dim);
    const size_t d = golden.head_dim;
    std::vector<float> rows(KVT_PAGE_TOKENS * d, -1.0f);
    ASSERT_EQ(kvt_decode(codec.get(), golden.side, golden.page.data(), golden.page.size(), 0, KVT_PAGE_TOKENS, rows.data(), d),
              KVT_OK);
    for (const auto& [cell, expected] : golden.decoded) {
      ASSERT_EQ(expected.size(), 6u);
      const float* x = rows.data() + cell * d;
      const double tolerance = 4e-6 * expected[4];
      const size_t picks[] = {0, 1, d / 2, d - 1};
      for (size_t i = 0; i < 4; ++i) {
        if (golden.codec == KVT_CODEC_F16) {
          EXPECT_EQ(x[picks[i]], static_cast<float>(expected[i])) << golden.name << " cell " << cell;
        } else {
          EXPECT_NEAR(x[picks[i]], expected[i], tolerance) << golden.name << " cell " << cell << " dim " << picks[i];
        }
      }
      double square = 0;
      double checksum = 0;
      for (size_t i = 0; i < d; ++i) {
        const double value = x[i];
        square += value * value;
        checksum += (static_cast<double>(i % 17) - 8) * value;
      }
      EXPECT_NEAR(std::sqrt(square), expected[4], tolerance) << golden.name << " cell " << cell;
      // The weights 0 .. 8 have root mean square 4.9.
      EXPECT_NEAR(checksum, expected[5], 4.9 * std::sqrt(static_cast<double>(d)) * tolerance)
          << golden.name << " cell " << cell;
      // Alone, into a wider row: a cell does not depend on its neighbours.
      std::vector<float> alone(d + 3, 7.0f);
      ASSERT_EQ(kvt_decode(codec.get(), golden.side, golden.page.data(), golden.page.size(), cell, 1, alone.data(), d + 3),
                KVT_OK);
      EXPECT_TRUE(std::equal(x, x + d, alone.begin())) << golden.name << " cell " << cell;
      EXPECT_EQ(alone[d], 7.0f);
    }
    EXPECT_EQ(kvt_validate_pages(codec.get(), golden.side, golden.page.data(), golden.page.size(), 1), KVT_OK) << golden.name;
  }
}

// format.md section 8.
TEST_F(Golden, WorkedExample) {
  const CodecPtr codec = make_codec(KVT_CODEC_SCALAR43, 64, 64);
  std::vector<float> x(64);
  x[0] = 1;
  const std::vector<uint8_t> page = encode_rows(codec.get(), KVT_VALUE, x, 64);
  std::vector<uint8_t> expected(1664);
  for (size_t w = 0; w < 16; ++w) {
    expected[4 * w] = 0x02;
    expected[256 + 4 * w] = 0x0A;
    expected[512 + 4 * w] = 0x02;
  }
  expected[1536] = 0x40;
  expected[1537] = 0x3D;
  EXPECT_EQ(page, expected);
  const std::vector<float> decoded = decode_rows(codec.get(), KVT_VALUE, page, 1, 64);
  EXPECT_NEAR(decoded[0], 1.00012, 5e-6);
  for (size_t i = 1; i < 64; ++i) EXPECT_NEAR(decoded[i], 0, 1e-6);
}

// ---- golden-errors -------------------------------------------------------------------------------------------------------

kvt_status status_from_name(const std::string& name) {
  static const std::map<std::string, kvt_status> statuses = {
      {"KVT_OK", KVT_OK},
      {"KVT_ERROR_UNKNOWN_CODEC", KVT_ERROR_UNKNOWN_CODEC},
      {"KVT_ERROR_HEAD_DIM", KVT_ERROR_HEAD_DIM},
      {"KVT_ERROR_BAD_MAGIC", KVT_ERROR_BAD_MAGIC},
      {"KVT_ERROR_BAD_VERSION", KVT_ERROR_BAD_VERSION},
      {"KVT_ERROR_BAD_FIELD", KVT_ERROR_BAD_FIELD},
      {"KVT_ERROR_CORRUPT_PAGE", KVT_ERROR_CORRUPT_PAGE},
      {"KVT_ERROR_TRUNCATED", KVT_ERROR_TRUNCATED},
  };
  const auto found = statuses.find(name);
  EXPECT_NE(found, statuses.end()) << name;
  return found == statuses.end() ? KVT_ERROR_INVALID_ARGUMENT : found->second;
}

TEST_F(Golden, ErrorsAreRefusedWithTheNamedStatus) {
  size_t n_headers = 0;
  size_t n_pages = 0;
  for (const auto& path : files_in("golden-errors")) {
    SCOPED_TRACE(path.filename().string());
    std::map<std::string, std::string> field;
    std::vector<std::pair<size_t, std::vector<uint8_t>>> pokes;
    for (const Words& line : read_lines(path)) {
      if (line[0] == "poke") {
        pokes.emplace_back(std::stoul(line[1]), from_hex(line[2]));
      } else {
        field[line[0]] = line[1];
      }
    }
    const kvt_status expected = status_from_name(field["status"]);
    if (field["kind"] == "header") {
      ++n_headers;
      const std::vector<uint8_t> bytes = from_hex(field["header"]);
      uint8_t none = 0;  // an empty header still has an address
      kvt_header header;
      std::memset(&header, 0x5A, sizeof header);
      header.struct_size = sizeof header;
      kvt_header before;
      std::memcpy(&before, &header, sizeof header);
      EXPECT_EQ(kvt_header_read(bytes.empty() ? &none : bytes.data(), bytes.size(), &header), expected);
      if (expected != KVT_OK) {
        EXPECT_EQ(std::memcmp(&header, &before, sizeof header), 0);
      } else {
        uint8_t again[KVT_HEADER_BYTES] = {};
        EXPECT_EQ(kvt_header_write(&header, again, sizeof again), KVT_OK);
        EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), again));
      }
      continue;
    }
    ASSERT_EQ(field["kind"], "page");
    ++n_pages;
    kvt_codec_id id = KVT_CODEC_F16;
    ASSERT_EQ(kvt_codec_from_name(field["codec"].c_str(), &id), KVT_OK);
    const kvt_side side = field["side"] == "key" ? KVT_KEY : KVT_VALUE;
    const auto head_dim = static_cast<uint32_t>(std::stoul(field["head_dim"]));
    const CodecPtr codec = make_codec(id, head_dim, head_dim);
    // Third of three pages, unaligned, with a gap full of ones that must not be looked at.
    const size_t bytes = kvt_page_bytes(codec.get(), side);
    const size_t stride = bytes + 7;
    std::vector<uint8_t> memory(1 + 3 * stride, 0xFF);
    uint8_t* pages = memory.data() + 1;
    for (size_t p = 0; p < 3; ++p) std::fill(pages + p * stride, pages + p * stride + bytes, uint8_t{0});
    for (const auto& [at, data] : pokes) {
      ASSERT_LE(at + data.size(), bytes);
      std::copy(data.begin(), data.end(), pages + 2 * stride + at);
    }
    const std::vector<uint8_t> before = memory;
    EXPECT_EQ(kvt_validate_pages(codec.get(), side, pages, stride, 3), expected);
    EXPECT_EQ(kvt_validate_pages(codec.get(), side, pages + 2 * stride, stride, 1), expected);
    EXPECT_EQ(kvt_validate_pages(codec.get(), side, pages, stride, 2), KVT_OK);
    EXPECT_EQ(memory, before);
    // Damaged or not, decoding gives numbers and stays inside the page.
    std::vector<float> rows(size_t{KVT_PAGE_TOKENS} * head_dim);
    EXPECT_EQ(kvt_decode(codec.get(), side, pages + 2 * stride, stride, 0, KVT_PAGE_TOKENS, rows.data(), head_dim), KVT_OK);
  }
  EXPECT_GT(n_headers, 20u);
  EXPECT_GT(n_pages, 40u);
}

}  // namespace
}  // namespace kvt_test
