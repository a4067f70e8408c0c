// Rows of a saved state (format.md section 9): a row of fp16 values whose low mantissa bits carry the row's codes, and piece by piece
// the conditioning of the keys. Who does not know of it reads values; who does reads what was stored, to the bit.
#ifndef KVT_FORMAT_STATE_ROW_H
#define KVT_FORMAT_STATE_ROW_H

#include <cstddef>
#include <cstdint>
#include <vector>

#include "format/page_layout.h"

namespace kvt {

uint32_t crc32(uint32_t crc, const void* bytes, size_t n);

// Sizes of one tensor's rows: n_heads heads of a side of a codec other than f16.
struct StateRowShape {
  StateRowShape(const SideLayout& layout, unsigned n_heads);

  kvt_codec_id codec;
  kvt_side side;
  unsigned head_dim, n_heads;
  unsigned code_bits;       // of a code; 7 for keys of 8 bits
  unsigned norms_per_head;  // 2 with a residual
  size_t n_values() const { return size_t{head_dim} * n_heads; }
  size_t n_norms() const { return size_t{norms_per_head} * n_heads; }
  size_t message_bytes() const { return n_values() / 4; }  // two bits of each half
  size_t piece_bytes() const { return message_bytes() - kFixedBytes - 2 * n_norms(); }
  // Of a conditioning: mean of each channel (i8), unit of the means of each head (fp32), scale of each channel (fp16).
  size_t conditioning_bytes() const { return 3 * n_values() + 4 * n_heads; }
  // A prime, so that rows that are saved with a stride still carry all pieces.
  unsigned n_pieces() const { return n_pieces_; }

  static constexpr size_t kFixedBytes = 10;  // crc, digest, codec, piece

 private:
  unsigned n_pieces_;
};

struct StateRow {
  uint32_t conditioning = 0;  // digest of it; 0: none
  uint8_t piece = 0;
  std::vector<uint8_t> codes;         // [n_values]
  std::vector<uint16_t> norms;        // [n_heads, norms_per_head]: norm, residual
  std::vector<uint8_t> piece_bytes;   // [piece_bytes]
};

// Digest of conditioning_bytes bytes of conditioning; never 0.
uint32_t conditioning_digest(const uint8_t* bytes, size_t n);

// Puts row into the low bits of halves [n_values]; the values stay as near as the other bits allow.
void hide_state_row(const StateRowShape& shape, const StateRow& row, uint16_t* halves);
// False, and nothing is changed, if halves are values without a row of this shape in them.
bool find_state_row(const StateRowShape& shape, const uint16_t* halves, StateRow* row);

// The conditioning of rows, from their pieces.
class ConditioningPieces {
 public:
  explicit ConditioningPieces(const StateRowShape& shape)
      : n_pieces_(shape.n_pieces()), piece_bytes_(shape.piece_bytes()), seen_(n_pieces_, false), bytes_(shape.conditioning_bytes(), 0) {}
  void add(const StateRow& row);
  // Whether all of it is there and has that digest.
  bool is_complete(uint32_t digest) const { return n_missing() == 0 && conditioning_digest(bytes_.data(), bytes_.size()) == digest; }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  size_t n_missing() const;
  size_t n_pieces_, piece_bytes_;
  std::vector<bool> seen_;
  std::vector<uint8_t> bytes_;
};

// Bytes of a piece of a conditioning, as a row carries them: zeros behind the end.
void cut_piece(const StateRowShape& shape, const uint8_t* conditioning, unsigned piece, uint8_t* piece_bytes);

}  // namespace kvt

#endif
