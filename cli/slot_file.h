// A saved slot or session file of llama.cpp (--slot-save-path, llama_state_save_file): where in it the f16 rows of keys and values lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

namespace kvt::cli {

// The file is none, or ends too early. One clause.
struct SlotFileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A part of the file. Parts follow each other without gaps.
struct SlotPart {
  size_t begin, bytes;
  size_t row_bytes;  // rows of one layer's keys or values; 0: anything else
};

// What is not understood (recurrent states, transposed values, caches of other types) is no rows, which is never wrong. Throws
// SlotFileError if the magic, version or token count is not one of such a file.
std::vector<SlotPart> find_rows(std::span<const uint8_t> file);

}  // namespace kvt::cli
