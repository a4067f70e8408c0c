// Rows of saved states (format.md section 9): whatever a cell holds comes back to the bit, for all codecs, head dims and rows; values stay
// near; what is not such a row is not taken for one.
#include "format/state_row.h"

#include <cstring>

#include "api/engine_encode.h"
#include "format/half.h"
#include "test_support.h"

namespace {

using kvt::StateRow;
using kvt::StateRowShape;

// Rows by kind: ordinary ones, then those that quantisers like least.
constexpr int kKinds = 8;
std::vector<float> row_of(int kind, uint64_t seed, size_t d) {
  std::vector<float> row = kvt_test::gaussian_rows(seed, 1, d);
  for (size_t i = 0; i < d; ++i) {
    float& x = row[i];
    switch (kind) {
      case 1: x = x * x * x * x * x; break;                         // heavy tails
      case 2: x = i % 16 == seed % 16 ? x : 0; break;               // sparse
      case 3: x *= i == seed % d ? 1000 : 0.001f; break;            // one outlier
      case 4: x = static_cast<float>(seed % 7); break;              // constant; zero
      case 5: x = x > 0 ? 1 : -1; break;
      case 6: x *= std::ldexp(1.0f, static_cast<int>(seed % 40) - 30); break;  // tiny, down to fp16's subnormals
      case 7: x *= 20000; break;                                    // beyond fp16: decoded values saturate
      default: break;
    }
  }
  return row;
}

StateRow cell_of(const kvt_codec* codec, kvt_side side, const StateRowShape& shape, const std::vector<uint8_t>& page, int64_t first_cell) {
  StateRow row;
  row.codes.resize(shape.n_values());
  row.norms.resize(shape.n_norms());
  row.piece_bytes.assign(shape.piece_bytes(), 0);
  for (unsigned head = 0; head < shape.n_heads; ++head) {
    kvt_internal::read_cell(codec, side, page.data(), page.size(), first_cell + head, row.codes.data() + size_t{head} * shape.head_dim,
                            row.norms.data() + size_t{head} * shape.norms_per_head);
  }
  return row;
}

class StateRows : public kvt_test::IsaTest {};

TEST_F(StateRows, CodesComeBack) {
  for (const kvt_codec_id id : kvt_test::kCodecs) {
    if (id == KVT_CODEC_F16) continue;
    for (const uint32_t d : kvt_test::kHeadDims) {
      const kvt_test::CodecPtr codec = kvt_test::make_codec(id, d, d);
      for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
        for (const unsigned n_heads : {1u, 3u}) {
          const StateRowShape shape(kvt::make_side_layout(id, side, d), n_heads);
          for (int kind = 0; kind < kKinds; ++kind) {
            std::vector<float> rows;
            for (unsigned head = 0; head < n_heads; ++head) {
              const std::vector<float> row = row_of(kind, 1000 * static_cast<uint64_t>(id) + 10 * d + head, d);
              rows.insert(rows.end(), row.begin(), row.end());
            }
            const std::vector<uint8_t> page = kvt_test::encode_rows(codec.get(), side, rows, d);
            StateRow row = cell_of(codec.get(), side, shape, page, 0), found;
            row.conditioning = 0x12345678u + static_cast<uint32_t>(kind);
            row.piece = static_cast<uint8_t>((d + static_cast<unsigned>(kind)) % shape.n_pieces());
            for (size_t i = 0; i < row.piece_bytes.size(); ++i) row.piece_bytes[i] = static_cast<uint8_t>(kvt_test::splitmix64(d, i));
            const std::vector<float> values = kvt_test::decode_rows(codec.get(), side, page, n_heads, d);
            std::vector<uint16_t> halves(values.size());
            for (size_t i = 0; i < values.size(); ++i) halves[i] = kvt::float_to_half(values[i]);
            const std::vector<uint16_t> before = halves;
            kvt::hide_state_row(shape, row, halves.data());
            ASSERT_TRUE(kvt::find_state_row(shape, halves.data(), &found)) << id << " " << d << " " << side << " " << kind;
            EXPECT_EQ(found.conditioning, row.conditioning);
            EXPECT_EQ(found.piece, row.piece);
            EXPECT_EQ(found.codes, row.codes);
            EXPECT_EQ(found.norms, row.norms);
            EXPECT_EQ(found.piece_bytes, row.piece_bytes);
            std::vector<uint8_t> restored(page.size());
            for (unsigned head = 0; head < n_heads; ++head) {
              kvt_internal::write_cell(codec.get(), side, restored.data(), restored.size(), head, found.codes.data() + size_t{head} * d,
                                       found.norms.data() + size_t{head} * shape.norms_per_head);
            }
            EXPECT_EQ(restored, page);
            // The low bits move a value by half of what they can hold, in its binade or the ends of the range by all of it.
            for (size_t i = 0; i < halves.size(); ++i) {
              const int distance = std::abs((halves[i] & 0x7fff) - (before[i] & 0x7fff)), step = 1 << (shape.code_bits + 2);
              EXPECT_LE(distance, (before[i] & 0x7fff) < step || (before[i] & 0x7fff) + step > 0x7bff ? step : step / 2);
              EXPECT_EQ(halves[i] & 0x8000, before[i] & 0x8000);
              EXPECT_LT(halves[i] & 0x7fff, 0x7c00);
            }
          }
        }
      }
    }
  }
}

TEST_F(StateRows, OtherRowsAreNotTaken) {
  const StateRowShape shape(kvt::make_side_layout(KVT_CODEC_K4V3, KVT_KEY, 64), 2);
  StateRow row, found;
  row.codes.assign(shape.n_values(), 5);
  row.norms.assign(shape.n_norms(), 0x3c00);
  row.piece_bytes.assign(shape.piece_bytes(), 7);
  std::vector<uint16_t> halves(shape.n_values(), 0x3c00);
  kvt::hide_state_row(shape, row, halves.data());
  ASSERT_TRUE(kvt::find_state_row(shape, halves.data(), &found));
  for (size_t i = 0; i < halves.size(); ++i) {  // one wrong bit
    for (unsigned bit = 0; bit < shape.code_bits + 2; ++bit) {
      halves[i] = static_cast<uint16_t>(halves[i] ^ 1u << bit);
      EXPECT_FALSE(kvt::find_state_row(shape, halves.data(), &found)) << i << " " << bit;
      halves[i] = static_cast<uint16_t>(halves[i] ^ 1u << bit);
    }
  }
  // The same bytes are not a row of another side, codec, head dim or number of heads.
  for (const StateRowShape& other : {StateRowShape(kvt::make_side_layout(KVT_CODEC_SCALAR43, KVT_KEY, 64), 2),
                                     StateRowShape(kvt::make_side_layout(KVT_CODEC_K8V4, KVT_VALUE, 64), 2),
                                     StateRowShape(kvt::make_side_layout(KVT_CODEC_K4V3, KVT_KEY, 128), 1)}) {
    EXPECT_FALSE(kvt::find_state_row(other, halves.data(), &found));
  }
  for (uint64_t n = 0; n < 100000; ++n) {
    for (size_t i = 0; i < halves.size(); i += 4) {
      const uint64_t bits = kvt_test::splitmix64(n, i);
      std::memcpy(halves.data() + i, &bits, sizeof bits);
    }
    ASSERT_FALSE(kvt::find_state_row(shape, halves.data(), &found));
  }
}

TEST_F(StateRows, ConditioningComesInPieces) {
  for (const uint32_t d : kvt_test::kHeadDims) {
    for (const unsigned n_heads : {1u, 2u, 8u}) {
      const StateRowShape shape(kvt::make_side_layout(KVT_CODEC_HYBRID, KVT_KEY, d), n_heads);
      std::vector<uint8_t> bytes(shape.conditioning_bytes());
      for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(kvt_test::splitmix64(d, i));
      const uint32_t digest = kvt::conditioning_digest(bytes.data(), bytes.size());
      kvt::ConditioningPieces pieces(shape);
      StateRow row;
      for (unsigned n = 0; n < shape.n_pieces(); ++n) {  // every third row: the number of pieces is prime
        EXPECT_FALSE(pieces.is_complete(digest));
        row.piece = static_cast<uint8_t>(n * 3 % shape.n_pieces());
        row.piece_bytes.resize(shape.piece_bytes());
        kvt::cut_piece(shape, bytes.data(), row.piece, row.piece_bytes.data());
        pieces.add(row);
        if (pieces.is_complete(digest)) break;
      }
      EXPECT_TRUE(pieces.is_complete(digest)) << d << " " << n_heads;
      EXPECT_FALSE(pieces.is_complete(digest + 1));
      EXPECT_EQ(pieces.bytes(), bytes);
    }
  }
}

}  // namespace
