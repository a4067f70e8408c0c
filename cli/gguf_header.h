// The head of a GGUF file: what it says of the model, and how large its tensors are. model_shape.h says what that means.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace kvt::cli {

struct GgufTensor {
  std::string name;
  std::uint64_t offset = 0, bytes = 0;  // in the file's data; bytes with the padding behind
};

struct GgufHeader {
  std::map<std::string, std::string> texts;
  std::map<std::string, std::vector<std::uint64_t>> numbers;  // one, or the numbers of an array; bits of floating-point ones
  std::vector<GgufTensor> tensors;
  std::uint64_t file_bytes = 0;

  std::string architecture() const;
  // The numbers of ARCHITECTURE.name; none if there is no such entry.
  std::vector<std::uint64_t> list(const std::string& name) const;
  std::uint64_t number(const std::string& name, std::uint64_t otherwise) const;
};

// Throws CliError if the file is not a GGUF file of version 2 or 3.
GgufHeader read_gguf_header(const std::filesystem::path& file);

}  // namespace kvt::cli
