// Stored headers.
#include "format/cache_header.h"

extern "C" {

kvt_status kvt_header_write(const kvt_header* header, void* dst, size_t dst_bytes) {
  if (header == nullptr || dst == nullptr || header->struct_size != sizeof(kvt_header)) return KVT_ERROR_INVALID_ARGUMENT;
  if (dst_bytes < KVT_HEADER_BYTES) return KVT_ERROR_DST_TOO_SMALL;
  const kvt_status status = kvt::check_header_fields(*header);
  if (status == KVT_OK) kvt::write_header(*header, static_cast<uint8_t*>(dst));
  return status;
}

kvt_status kvt_header_read(const void* src, size_t src_bytes, kvt_header* header) {
  if (src == nullptr || header == nullptr || header->struct_size != sizeof(kvt_header)) return KVT_ERROR_INVALID_ARGUMENT;
  if (src_bytes < KVT_HEADER_BYTES) return KVT_ERROR_TRUNCATED;
  return kvt::parse_header(static_cast<const uint8_t*>(src), header);
}

}  // extern "C"
