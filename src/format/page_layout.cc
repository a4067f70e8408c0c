#include "format/page_layout.h"

namespace kvt {

bool is_supported_head_dim(unsigned head_dim) {
  for (unsigned d : {64u, 80u, 96u, 112u, 128u, 192u, 256u}) {
    if (d == head_dim) return true;
  }
  return false;
}

bool is_known_codec(int codec) { return codec >= KVT_CODEC_F16 && codec <= KVT_CODEC_K4V3; }

SideLayout make_side_layout(kvt_codec_id codec, kvt_side side, unsigned head_dim) {
  SideLayout layout{codec, side, head_dim, nullptr, false, 0, 0, 0};
  if (codec == KVT_CODEC_F16) {
    layout.page_bytes = size_t{kPageTokens} * head_dim * 2;
    return layout;
  }
  const bool key = side == KVT_KEY;
  switch (codec) {
    case KVT_CODEC_SCALAR43: layout.table = key ? &kLloydMax4 : &kLloydMax3; break;
    case KVT_CODEC_K4V3: layout.table = key ? &kTrellis4 : &kTrellis3; break;
    default: layout.table = &kLloydMax3;
  }
  layout.has_residual = key && codec == KVT_CODEC_HYBRID;
  layout.norm_offset = key ? size_t{32} * head_dim : 2 * ValuePlanes(head_dim).group_bytes();
  layout.page_bytes = layout.norm_offset + kPageTokens * 2;
  if (layout.has_residual) {
    layout.residual_offset = layout.page_bytes;
    layout.page_bytes += kPageTokens * 2;
  }
  return layout;
}

}  // namespace kvt
