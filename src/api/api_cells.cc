// Rows <-> cells, and validation of foreign pages.
#include <cmath>
#include <cstring>

#include "api/codec_object.h"
#include "api/engine_encode.h"
#include "format/half.h"
#include "format/page_validation.h"
#include "reference/reference.h"

namespace {

bool is_side(kvt_side side) { return side == KVT_KEY || side == KVT_VALUE; }

// Storable: every value finite, and so is its image in the codec (the squared norm, or the fp16 value).
bool is_storable_row(const kvt::SideLayout& layout, const float* x) {
  if (layout.codec != KVT_CODEC_F16) return std::isfinite(kvt::reference::ordered_dot(x, x, layout.head_dim));
  for (unsigned i = 0; i < layout.head_dim; ++i) {
    if (!(std::fabs(x[i]) <= kvt::kHalfMax)) return false;
  }
  return true;
}

}  // namespace

void kvt_internal::floats_to_halves(const kvt_codec* codec, const float* from, size_t n, uint16_t* to) {
  codec->kernels->floats_to_halves(from, n, reinterpret_cast<uint8_t*>(to));
}
void kvt_internal::halves_to_floats(const kvt_codec* codec, const uint16_t* from, size_t n, float* to) {
  codec->kernels->halves_to_floats(reinterpret_cast<const uint8_t*>(from), n, to);
}

void kvt_internal::encode_unchecked(const kvt_codec* codec, kvt_side side, const float* src, size_t src_stride, size_t n_rows,
                                    const int64_t* cells, void* pages, size_t page_stride) {
  const kvt::SideLayout& layout = codec->layout(side);
  for (size_t i = 0; i < n_rows; ++i) {
    const auto cell = static_cast<size_t>(cells[i]);
    uint8_t* page = static_cast<uint8_t*>(pages) + cell / kvt::kPageTokens * page_stride;
    codec->kernels->encode_row(layout, src + i * src_stride, page, static_cast<unsigned>(cell % kvt::kPageTokens));
  }
}

void kvt_internal::read_cell(const kvt_codec* codec, kvt_side side, const void* pages, size_t page_stride, int64_t cell, uint8_t* codes,
                             uint16_t* norms) {
  const kvt::SideLayout& layout = codec->layout(side);
  const auto* page = static_cast<const uint8_t*>(pages) + static_cast<size_t>(cell) / kvt::kPageTokens * page_stride;
  const auto slot = static_cast<unsigned>(cell % kvt::kPageTokens);
  kvt::reference::read_codes(layout, page, slot, codes);
  std::memcpy(norms, page + layout.norm_offset + 2 * size_t{slot}, 2);
  if (layout.has_residual) std::memcpy(norms + 1, page + layout.residual_offset + 2 * size_t{slot}, 2);
}

void kvt_internal::write_cell(const kvt_codec* codec, kvt_side side, void* pages, size_t page_stride, int64_t cell, const uint8_t* codes,
                              const uint16_t* norms) {
  const kvt::SideLayout& layout = codec->layout(side);
  auto* page = static_cast<uint8_t*>(pages) + static_cast<size_t>(cell) / kvt::kPageTokens * page_stride;
  const auto slot = static_cast<unsigned>(cell % kvt::kPageTokens);
  kvt::reference::write_codes(layout, codes, page, slot);
  std::memcpy(page + layout.norm_offset + 2 * size_t{slot}, norms, 2);
  if (layout.has_residual) std::memcpy(page + layout.residual_offset + 2 * size_t{slot}, norms + 1, 2);
}

extern "C" {

kvt_status kvt_encode(const kvt_codec* codec, kvt_side side, const float* src, size_t src_stride, size_t n_rows,
                      const int64_t* cells, void* pages, size_t page_stride) {
  if (codec == nullptr || !is_side(side)) return KVT_ERROR_INVALID_ARGUMENT;
  if (n_rows == 0) return KVT_OK;
  const kvt::SideLayout& layout = codec->layout(side);
  if (src == nullptr || cells == nullptr || pages == nullptr || src_stride < layout.head_dim || page_stride < layout.page_bytes) {
    return KVT_ERROR_INVALID_ARGUMENT;
  }
  for (size_t i = 0; i < n_rows; ++i) {
    if (cells[i] < 0) return KVT_ERROR_CELL_RANGE;
    if (!is_storable_row(layout, src + i * src_stride)) return KVT_ERROR_NOT_FINITE;
  }
  kvt_internal::encode_unchecked(codec, side, src, src_stride, n_rows, cells, pages, page_stride);
  return KVT_OK;
}

kvt_status kvt_decode(const kvt_codec* codec, kvt_side side, const void* pages, size_t page_stride, size_t first, size_t n_cells,
                      float* dst, size_t dst_stride) {
  if (codec == nullptr || !is_side(side)) return KVT_ERROR_INVALID_ARGUMENT;
  if (n_cells == 0) return KVT_OK;
  const kvt::SideLayout& layout = codec->layout(side);
  if (pages == nullptr || dst == nullptr || page_stride < layout.page_bytes || dst_stride < layout.head_dim) {
    return KVT_ERROR_INVALID_ARGUMENT;
  }
  for (size_t i = 0; i < n_cells; ++i) {
    const size_t cell = first + i;
    const uint8_t* page = static_cast<const uint8_t*>(pages) + cell / kvt::kPageTokens * page_stride;
    kvt::reference::decode_row(layout, page, static_cast<unsigned>(cell % kvt::kPageTokens), dst + i * dst_stride);
  }
  return KVT_OK;
}

kvt_status kvt_validate_pages(const kvt_codec* codec, kvt_side side, const void* pages, size_t page_stride, size_t n_pages) {
  if (codec == nullptr || !is_side(side)) return KVT_ERROR_INVALID_ARGUMENT;
  if (n_pages == 0) return KVT_OK;
  const kvt::SideLayout& layout = codec->layout(side);
  if (pages == nullptr || page_stride < layout.page_bytes) return KVT_ERROR_INVALID_ARGUMENT;
  for (size_t p = 0; p < n_pages; ++p) {
    if (!kvt::is_valid_page(layout, static_cast<const uint8_t*>(pages) + p * page_stride)) return KVT_ERROR_CORRUPT_PAGE;
  }
  return KVT_OK;
}

}  // extern "C"
