// Codes that are tried on models, and some of the product's beside them to compare with.
#ifndef KVT_RESEARCH_RESEARCH_CODES_H
#define KVT_RESEARCH_RESEARCH_CODES_H

#include <cstdint>

#include "format/page_layout.h"

namespace kvt::research {

// A row x as x_hat = norm / sqrt(d) * step * R^T levels, norm = |x| times what encode returns.
struct EncodedRow {
  uint8_t codes[kMaxHeadDim];  // of at most 4 bits, if the code has them
  int8_t levels[kMaxHeadDim];  // -63 to 63
  float step;
};

struct SideCode {
  // y: sqrt(d) R x / |x|
  float (*encode)(kvt_side side, unsigned d, const float* y, EncodedRow* row);
  void (*decode)(kvt_side side, unsigned d, const uint8_t* codes, int8_t* levels);  // nullptr: no codes, keys only
};

struct ResearchCode {
  const char* name;
  SideCode key, value;
};

// nullptr: no code of that name.
const ResearchCode* find_research_code(const char* name);

}  // namespace kvt::research

#endif
