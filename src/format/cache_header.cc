#include "format/cache_header.h"

#include <cstring>

#include "format/page_layout.h"

namespace kvt {
namespace {

constexpr uint8_t kMagic[4] = {'K', 'V', 'T', 'C'};

template <class T>
void put(uint8_t* dst, size_t offset, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) dst[offset + i] = static_cast<uint8_t>(value >> (8 * i));
}

template <class T>
T get(const uint8_t* src, size_t offset) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>(value | static_cast<T>(src[offset + i]) << (8 * i));
  return value;
}

}  // namespace

kvt_status check_header_fields(const kvt_header& header) {
  if (!is_known_codec(header.codec)) return KVT_ERROR_UNKNOWN_CODEC;
  if (!is_supported_head_dim(header.head_dim_k) || !is_supported_head_dim(header.head_dim_v)) return KVT_ERROR_HEAD_DIM;
  if (header.n_kv_heads == 0 || header.n_layers == 0 || header.n_cells == 0) return KVT_ERROR_BAD_FIELD;
  return KVT_OK;
}

void write_header(const kvt_header& header, uint8_t* dst) {
  std::memset(dst, 0, KVT_HEADER_BYTES);
  std::memcpy(dst, kMagic, sizeof kMagic);
  put<uint16_t>(dst, 4, KVT_FORMAT_VERSION);
  put<uint16_t>(dst, 6, KVT_HEADER_BYTES);
  put<uint16_t>(dst, 8, static_cast<uint16_t>(header.codec));
  put<uint16_t>(dst, 12, static_cast<uint16_t>(header.head_dim_k));
  put<uint16_t>(dst, 14, static_cast<uint16_t>(header.head_dim_v));
  put<uint32_t>(dst, 16, header.n_kv_heads);
  put<uint32_t>(dst, 20, header.n_layers);
  put<uint64_t>(dst, 24, header.n_cells);
  put<uint64_t>(dst, 32, header.model_hash);
  put<uint16_t>(dst, 40, kPageTokens);
}

kvt_status parse_header(const uint8_t* src, kvt_header* header) {
  if (std::memcmp(src, kMagic, sizeof kMagic) != 0) return KVT_ERROR_BAD_MAGIC;
  if (get<uint16_t>(src, 4) != KVT_FORMAT_VERSION) return KVT_ERROR_BAD_VERSION;
  if (get<uint16_t>(src, 6) != KVT_HEADER_BYTES) return KVT_ERROR_BAD_FIELD;
  kvt_header parsed{};
  parsed.struct_size = sizeof parsed;
  const uint16_t codec = get<uint16_t>(src, 8);
  if (!is_known_codec(codec)) return KVT_ERROR_UNKNOWN_CODEC;
  parsed.codec = static_cast<kvt_codec_id>(codec);
  parsed.head_dim_k = get<uint16_t>(src, 12);
  parsed.head_dim_v = get<uint16_t>(src, 14);
  parsed.n_kv_heads = get<uint32_t>(src, 16);
  parsed.n_layers = get<uint32_t>(src, 20);
  parsed.n_cells = get<uint64_t>(src, 24);
  parsed.model_hash = get<uint64_t>(src, 32);
  if (get<uint16_t>(src, 10) != 0 || get<uint16_t>(src, 40) != kPageTokens || get<uint16_t>(src, 42) != 0) return KVT_ERROR_BAD_FIELD;
  for (size_t i = 44; i < KVT_HEADER_BYTES; ++i) {
    if (src[i] != 0) return KVT_ERROR_BAD_FIELD;
  }
  const kvt_status status = check_header_fields(parsed);
  if (status == KVT_OK) *header = parsed;
  return status;
}

}  // namespace kvt
