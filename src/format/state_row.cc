#include "format/state_row.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace kvt {
namespace {

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0);
    table[i] = c;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

unsigned next_prime(unsigned n) {
  const auto is_prime = [](unsigned p) {
    for (unsigned k = 2; k * k <= p; ++k) {
      if (p % k == 0) return false;
    }
    return p > 1;
  };
  while (!is_prime(n)) ++n;
  return n;
}

void put(uint8_t* to, uint32_t value, unsigned n_bytes) {
  for (unsigned i = 0; i < n_bytes; ++i) to[i] = static_cast<uint8_t>(value >> 8 * i);
}
uint32_t get(const uint8_t* from, unsigned n_bytes) {
  uint32_t value = 0;
  for (unsigned i = 0; i < n_bytes; ++i) value |= uint32_t{from[i]} << 8 * i;
  return value;
}

// What rows of other shapes cannot have in common with ours.
uint32_t row_crc(const StateRowShape& shape, const uint8_t* message, const uint8_t* codes) {
  uint8_t seed[8] = {'K', 'V', 'S', static_cast<uint8_t>(shape.side)};
  put(seed + 4, shape.head_dim, 2);
  put(seed + 6, shape.n_heads, 2);
  const uint32_t crc = crc32(crc32(0, seed, sizeof seed), message + 4, shape.message_bytes() - 4);
  return crc32(crc, codes, shape.n_values());
}

// The fp16 value nearest to h, finite if h is, whose low n_bits are `low`. In sign and magnitude the distance is one of integers.
uint16_t with_low_bits(uint16_t h, unsigned n_bits, uint32_t low) {
  constexpr int kLargest = 0x7bff;
  constexpr int kInfinity = 0x7c00;
  const int step = 1 << n_bits;
  const int magnitude = (h & 0x7fff) == kInfinity ? kLargest : h & 0x7fff;
  int best = (magnitude & ~(step - 1)) | static_cast<int>(low);
  if (magnitude > kInfinity) return static_cast<uint16_t>((h & 0x8000) | best | 0x200);  // a NaN stays one; at most 9 bits are low
  if (best > magnitude && best - magnitude > step / 2 && best >= step) best -= step;
  if (best < magnitude && magnitude - best > step / 2 && best + step <= kLargest) best += step;
  return static_cast<uint16_t>((h & 0x8000) | best);
}

}  // namespace

uint32_t crc32(uint32_t crc, const void* bytes, size_t n) {
  const auto* p = static_cast<const uint8_t*>(bytes);
  crc = ~crc;
  for (size_t i = 0; i < n; ++i) crc = crc >> 8 ^ kCrcTable[(crc ^ p[i]) & 0xff];
  return ~crc;
}

StateRowShape::StateRowShape(const SideLayout& layout, unsigned heads)
    : codec(layout.codec),
      side(layout.side),
      head_dim(layout.head_dim),
      n_heads(heads),
      code_bits(layout.code_bits == 8 ? 7 : layout.code_bits),
      norms_per_head(layout.has_residual ? 2 : 1),
      n_pieces_(next_prime(static_cast<unsigned>((conditioning_bytes() + piece_bytes() - 1) / piece_bytes()))) {}

uint32_t conditioning_digest(const uint8_t* bytes, size_t n) { return std::max<uint32_t>(crc32(0, bytes, n), 1); }

void hide_state_row(const StateRowShape& shape, const StateRow& row, uint16_t* halves) {
  std::vector<uint8_t> message(shape.message_bytes());
  put(message.data() + 4, row.conditioning, 4);
  message[8] = static_cast<uint8_t>(shape.codec);
  message[9] = row.piece;
  uint8_t* at = message.data() + StateRowShape::kFixedBytes;
  for (size_t i = 0; i < shape.n_norms(); ++i, at += 2) put(at, row.norms[i], 2);
  std::copy_n(row.piece_bytes.begin(), shape.piece_bytes(), at);
  put(message.data(), row_crc(shape, message.data(), row.codes.data()), 4);
  for (size_t i = 0; i < shape.n_values(); ++i) {
    const uint32_t bits = message[i / 4] >> i % 4 * 2 & 3u;
    halves[i] = with_low_bits(halves[i], shape.code_bits + 2, uint32_t{row.codes[i]} | bits << shape.code_bits);
  }
}

bool find_state_row(const StateRowShape& shape, const uint16_t* halves, StateRow* row) {
  // Rows that are none, as stock's, nearly all show it here.
  const auto message_byte = [&](size_t at) {
    unsigned byte = 0;
    for (size_t i = 0; i < 4; ++i) byte |= (halves[4 * at + i] >> shape.code_bits & 3u) << 2 * i;
    return byte;
  };
  if (message_byte(8) != static_cast<unsigned>(shape.codec) || message_byte(9) >= shape.n_pieces()) return false;
  std::vector<uint8_t> message(shape.message_bytes()), codes(shape.n_values());
  for (size_t i = 0; i < shape.n_values(); ++i) {
    codes[i] = static_cast<uint8_t>(halves[i] & ((1u << shape.code_bits) - 1));
    message[i / 4] = static_cast<uint8_t>(message[i / 4] | (halves[i] >> shape.code_bits & 3u) << i % 4 * 2);
  }
  if (get(message.data(), 4) != row_crc(shape, message.data(), codes.data())) return false;
  row->conditioning = get(message.data() + 4, 4);
  row->piece = message[9];
  row->codes = std::move(codes);
  row->norms.resize(shape.n_norms());
  const uint8_t* at = message.data() + StateRowShape::kFixedBytes;
  for (size_t i = 0; i < shape.n_norms(); ++i, at += 2) row->norms[i] = static_cast<uint16_t>(get(at, 2));
  row->piece_bytes.assign(at, at + shape.piece_bytes());
  return true;
}

void cut_piece(const StateRowShape& shape, const uint8_t* conditioning, unsigned piece, uint8_t* piece_bytes) {
  const size_t begin = std::min(shape.piece_bytes() * piece, shape.conditioning_bytes());
  const size_t n = std::min(shape.piece_bytes(), shape.conditioning_bytes() - begin);
  std::copy_n(conditioning + begin, n, piece_bytes);
  std::fill_n(piece_bytes + n, shape.piece_bytes() - n, uint8_t{0});
}

void ConditioningPieces::add(const StateRow& row) {
  const size_t begin = std::min(piece_bytes_ * row.piece, bytes_.size());
  std::copy_n(row.piece_bytes.begin(), std::min(piece_bytes_, bytes_.size() - begin), bytes_.begin() + static_cast<ptrdiff_t>(begin));
  seen_[row.piece] = true;
}

size_t ConditioningPieces::n_missing() const {
  const size_t n_needed = (bytes_.size() + piece_bytes_ - 1) / piece_bytes_;
  return static_cast<size_t>(std::count(seen_.begin(), seen_.begin() + static_cast<ptrdiff_t>(n_needed), false));
}

}  // namespace kvt
