#include <algorithm>

#include "cuda/cuda_encode.h"
#include "format/rotation_tables.h"

namespace kvt::cuda {
namespace {

// Sorted thresholds -> search tree in breadth-first order. n = 2^k - 1.
void write_tree(const float* sorted, unsigned n, float* tree) {
  for (unsigned node = 1; node <= n; ++node) {
    unsigned depth = 0;
    while (node >> (depth + 1) != 0) ++depth;
    const unsigned step = (n + 1) >> depth;  // thresholds below one node of this depth, plus one
    tree[node] = sorted[(node - (1u << depth)) * step + step / 2 - 1];
  }
}

}  // namespace

EncodeCall make_encode_call(const SideLayout& layout) {
  EncodeCall call{};
  call.head_dim = layout.head_dim;
  call.norm_offset = static_cast<uint32_t>(layout.norm_offset);
  call.residual_offset = static_cast<uint32_t>(layout.residual_offset);
  call.raw_norm = layout.codec == KVT_CODEC_HYBRID;
  if (layout.table == nullptr) return call;
  const LevelTable& table = *layout.table;
  call.tables.code_bits = layout.code_bits;
  if (layout.scales != nullptr) {
    call.tables.n_scales = kTrellisScales;
    std::copy_n(layout.scales, kTrellisScales, call.tables.scales);
  }
  if (layout.code_bits == 8) {
    call.tables.value[0] = table.step;
  } else if (table.trellis) {
    for (unsigned z = 0; z < 4; ++z)
      write_tree(&table.thresholds[z * kSubsetThresholds], table.n_levels() / 4 - 1, call.tables.tree + 8 * z);
  } else {
    write_tree(table.thresholds.data(), table.n_levels() - 1, call.tables.tree);
  }
  for (unsigned i = 0; layout.code_bits != 8 && i < table.n_levels(); ++i)
    call.tables.value[i] = table.step * static_cast<float>(table.levels[i]);
  for (unsigned i = 0; i < layout.head_dim; ++i) {
    const auto bit = static_cast<uint16_t>(1u << (i / 16));
    if (sign_bit(kSignsRotation, i)) call.tables.signs[0][i % 16] |= bit;
    if (sign_bit(kSignsSketch, i)) call.tables.signs[1][i % 16] |= bit;
  }
  return call;
}

}  // namespace kvt::cuda
