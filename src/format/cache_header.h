// Header of a stored cache (format.md section 6).
#ifndef KVT_FORMAT_CACHE_HEADER_H
#define KVT_FORMAT_CACHE_HEADER_H

#include <cstddef>
#include <cstdint>

#include "kvturbo/kvturbo.h"

namespace kvt {

kvt_status check_header_fields(const kvt_header& header);
// dst, src: KVT_HEADER_BYTES. The fields must have passed the check.
void write_header(const kvt_header& header, uint8_t* dst);
kvt_status parse_header(const uint8_t* src, kvt_header* header);

}  // namespace kvt

#endif
