#include "format/page_layout.h"

#include <iterator>

namespace kvt {
namespace {

struct SideTables {
  const LevelTable* key;
  const LevelTable* value;
};

constexpr SideTables kTables[] = {  // by kvt_codec_id
    {nullptr, nullptr},             // f16
    {&kLloydMax3, &kLloydMax3},     // hybrid
    {&kLloydMax4, &kLloydMax3},     // scalar43
    {&kTrellis4, &kTrellis3},       // k4v3
    {&kTrellis3, &kTrellis3},       // k3v3
    {&kTrellis3, &kTrellis2},       // k3v2
    {&kTrellis2, &kTrellis2},       // k2v2
    {&kUniform7, &kTrellis4},       // k8v4
    {&kUniform7, &kTrellis3},       // k8v3
};

}  // namespace

bool is_supported_head_dim(unsigned head_dim) {
  for (unsigned d : {64u, 80u, 96u, 112u, 128u, 192u, 256u}) {
    if (d == head_dim) return true;
  }
  return false;
}

bool is_known_codec(int codec) { return codec >= KVT_CODEC_F16 && codec < static_cast<int>(std::size(kTables)); }

SideLayout make_side_layout(kvt_codec_id codec, kvt_side side, unsigned head_dim) {
  SideLayout layout{codec, side, head_dim, nullptr, nullptr, 0, false, 0, 0, 0};
  if (codec == KVT_CODEC_F16) {
    layout.page_bytes = size_t{kPageTokens} * head_dim * 2;
    return layout;
  }
  const bool key = side == KVT_KEY;
  layout.table = key ? kTables[codec].key : kTables[codec].value;
  // k4v3, the default, is written by every token of a prompt: one search. Two bits gain too little (1 to 3 %).
  if (codec != KVT_CODEC_K4V3 && layout.table == &kTrellis3) layout.scales = kTrellis3Scales.data();
  if (codec != KVT_CODEC_K4V3 && layout.table == &kTrellis4) layout.scales = kTrellis4Scales.data();
  layout.has_residual = key && codec == KVT_CODEC_HYBRID;
  layout.code_bits = layout.has_residual ? 4 : layout.table == &kUniform7 ? 8 : layout.table->bits;
  layout.norm_offset =
      key ? 4 * KeyPlanes(head_dim, layout.code_bits).tile_bytes() : 2 * ValuePlanes(head_dim, layout.code_bits).group_bytes();
  layout.page_bytes = layout.norm_offset + kPageTokens * 2;
  if (layout.has_residual) {
    layout.residual_offset = layout.page_bytes;
    layout.page_bytes += kPageTokens * 2;
  }
  return layout;
}

}  // namespace kvt
