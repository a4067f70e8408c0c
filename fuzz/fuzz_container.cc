// Any bytes are refused as a packed slot or unpack within their own bounds, and any slot file that packs unpacks to the same bytes.
// The first byte of an input chooses which.

#include "fuzz_input.h"
#include "slot_file.h"
#include "state_container.h"

namespace {

constexpr auto kNoProgress = [](double) {};

void unpack_any(std::span<const uint8_t> bytes) {
  for (const bool ignores_crc : {false, true}) {
    try {
      kvt::cli::unpack_slot(bytes, {false, ignores_crc}, [](std::span<const uint8_t>) {}, kNoProgress);
    } catch (const kvt::cli::ContainerError&) {
    }
  }
}

void pack_and_unpack(std::span<const uint8_t> file) {
  std::vector<uint8_t> packed, header(kvt::cli::kContainerHeaderBytes), again;
  const auto append_to = [](std::vector<uint8_t>* to) {
    return [to](std::span<const uint8_t> bytes) { to->insert(to->end(), bytes.begin(), bytes.end()); };
  };
  try {
    kvt::cli::pack_slot(file, 1, append_to(&packed), kNoProgress, header.data());
  } catch (const kvt::cli::SlotFileError&) {
    return;
  }
  packed.insert(packed.begin(), header.begin(), header.end());
  kvt::cli::unpack_slot(packed, {}, append_to(&again), kNoProgress);
  FUZZ_CHECK(again.size() == file.size() && std::memcmp(again.data(), file.data(), file.size()) == 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::vector<uint8_t> exact(data + 1, data + size);  // on the heap and of this size
  data[0] % 2 == 0 ? unpack_any(exact) : pack_and_unpack(exact);
  return 0;
}
