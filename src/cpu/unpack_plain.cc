#include "cpu/unpack_plain.h"

#include "cpu/attend_scratch.h"
#include "reference/reference.h"

namespace kvt::cpu {

void unpack_keys_plain(const SideLayout& layout, const uint8_t* page, uint8_t* key, uint8_t* sign) {
  const unsigned d = layout.head_dim;
  for (unsigned token = 0; token < kPageTokens; ++token) {
    uint8_t codes[kMaxHeadDim] = {}, index[kMaxHeadDim] = {};
    reference::read_codes(layout, page, token, codes);
    reference::level_indices(layout, codes, index);
    for (unsigned i = 0; i < d; ++i) {
      const size_t at = (size_t{token / 16} * d / 4 + i / 4) * 64 + token % 16 * 4 + i % 4;
      key[at] = static_cast<uint8_t>(layout.table->levels[index[i]] + kLevelOffset);
      if (layout.has_residual) sign[at] = codes[i] >> 3;
    }
  }
}

void unpack_values_plain(const SideLayout& layout, const uint8_t* page, int8_t* value) {
  const unsigned d = layout.head_dim;
  for (unsigned token = 0; token < kPageTokens; ++token) {
    uint8_t codes[kMaxHeadDim] = {}, index[kMaxHeadDim] = {};
    reference::read_codes(layout, page, token, codes);
    reference::level_indices(layout, codes, index);
    for (unsigned i = 0; i < d; ++i) value[(size_t{token / 4} * d + i) * 4 + token % 4] = layout.table->levels[index[i]];
  }
}

}  // namespace kvt::cpu
