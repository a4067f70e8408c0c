// What a decoder of untrusted pages refuses (format.md section 7).
#ifndef KVT_FORMAT_PAGE_VALIDATION_H
#define KVT_FORMAT_PAGE_VALIDATION_H

#include <cstdint>

#include "format/page_layout.h"

namespace kvt {

bool is_valid_page(const SideLayout& layout, const uint8_t* page);

}  // namespace kvt

#endif
