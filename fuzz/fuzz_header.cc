// A header is read only if writing what was read gives the same bytes, and is written only if reading gives the same fields; a
// refusal changes nothing.

#include <algorithm>

#include "fuzz_input.h"

namespace {

void read_then_write(const uint8_t* data, size_t size) {
  kvt_header header;
  std::memset(&header, 0, sizeof header);
  header.struct_size = sizeof header;
  const kvt_header before = header;
  const std::vector<uint8_t> exact(data, data + size);  // on the heap and of this size
  static const uint8_t none = 0;
  const uint8_t* bytes = size == 0 ? &none : exact.data();
  if (kvt_header_read(bytes, size, &header) != KVT_OK) {
    FUZZ_CHECK(std::memcmp(&header, &before, sizeof header) == 0);
    return;
  }
  uint8_t again[KVT_HEADER_BYTES];
  FUZZ_CHECK(kvt_header_write(&header, again, sizeof again) == KVT_OK);
  FUZZ_CHECK(std::memcmp(again, data, sizeof again) == 0);
}

void write_then_read(const uint8_t* data, size_t size) {
  kvt_fuzz::Input in(data, size);
  kvt_header header;
  std::memset(&header, 0, sizeof header);
  header.struct_size = sizeof header;
  header.codec = static_cast<kvt_codec_id>(in.below(kvt_fuzz::kCodecCount));
  in.fill(&header.head_dim_k, sizeof header - offsetof(kvt_header, head_dim_k));
  if (in.left() > 2 && data[1] & 1) {  // random head dims are hardly ever known ones
    header.head_dim_k = kvt_fuzz::kHeadDims[data[1] / 2 % 7];
    header.head_dim_v = kvt_fuzz::kHeadDims[data[2] % 7];
  }
  std::vector<uint8_t> bytes(KVT_HEADER_BYTES, 0xEE);
  const std::vector<uint8_t> before = bytes;
  if (kvt_header_write(&header, bytes.data(), bytes.size()) != KVT_OK) {
    FUZZ_CHECK(bytes == before);
    return;
  }
  kvt_header read;
  std::memset(&read, 0, sizeof read);
  read.struct_size = sizeof read;
  FUZZ_CHECK(kvt_header_read(bytes.data(), bytes.size(), &read) == KVT_OK);
  FUZZ_CHECK(std::memcmp(&read, &header, sizeof read) == 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  read_then_write(data, size);
  write_then_read(data, size);
  return 0;
}
