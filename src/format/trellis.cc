#include "format/trellis.h"

namespace kvt {

const TrellisChains& trellis_chains(kvt_side side, unsigned head_dim) {
  static constexpr unsigned kDims[] = {64, 80, 96, 112, 128, 192, 256};
  static const auto tables = [] {
    std::array<std::array<TrellisChains, 2>, std::size(kDims)> made{};
    for (unsigned i = 0; i < std::size(kDims); ++i) {
      made[i][0] = make_trellis_chains(KVT_KEY, kDims[i]);
      made[i][1] = make_trellis_chains(KVT_VALUE, kDims[i]);
    }
    return made;
  }();
  unsigned i = 0;
  while (kDims[i] != head_dim) ++i;
  return tables[i][side == KVT_KEY ? 0 : 1];
}

}  // namespace kvt
