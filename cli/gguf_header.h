// What the evaluation needs to know of a model before it starts a host: read from the head of its GGUF file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace kvt::cli {

struct GgufHeader {
  std::string architecture;
  std::uint64_t context_length = 0;         // tokens that the model was trained on; 0: not said
  std::uint64_t kv_elements_per_token = 0;  // of keys and values, all layers; 0: not a plain attention model
};

// Throws CliError if the file is not a GGUF file of version 2 or 3.
GgufHeader read_gguf_header(const std::filesystem::path& file);

}  // namespace kvt::cli
