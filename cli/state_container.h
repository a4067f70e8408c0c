// A saved slot with its rows as codes (format.md section 10).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>

namespace kvt::cli {

// The bytes are not a container that can be read. One clause.
struct ContainerError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using WriteBytes = std::function<void(std::span<const uint8_t>)>;
using Progress = std::function<void(double)>;  // 0 to 1

struct PackFigures {
  uint64_t rows = 0, rows_as_codes = 0;
};

// The container of a slot file; header: KVT_CONTAINER_HEADER_BYTES that go in front of what is written. Whatever the file holds comes
// back to the byte: rows that would not are stored as they are. Throws SlotFileError.
inline constexpr size_t kContainerHeaderBytes = 32;
PackFigures pack_slot(std::span<const uint8_t> file, uint64_t model_hash, const WriteBytes& write, const Progress& progress, uint8_t* header);

struct ContainerHeader {
  uint64_t model_hash = 0, file_bytes = 0;
  uint32_t file_crc = 0;
};
ContainerHeader read_container_header(std::span<const uint8_t> container);

struct UnpackOptions {
  bool plain_values = false;  // values without codes in their low bits, for stock llama.cpp
  bool ignores_crc = false;   // for the fuzzer, which would not get past the checksums
};
// The slot file. Throws ContainerError; what was written by then is to be thrown away.
void unpack_slot(std::span<const uint8_t> container, const UnpackOptions& options, const WriteBytes& write, const Progress& progress);

}  // namespace kvt::cli
