// Makes GGUF files for the tests, as small as they can be.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "model_shape.h"

namespace kvt::cli {

// A GGUF file in the making: metadata, and tensors of zeros.
class GgufBytes {
 public:
  GgufBytes(std::uint64_t n_entries, std::uint32_t version = 3, std::uint64_t n_tensors = 0) {
    put("GGUF", 4), number(version, 4), number(n_tensors, 8), number(n_entries, 8);
  }

  GgufBytes& text(const std::string& name, const std::string& value) {
    return string(name), number(8, 4), string(value), *this;
  }
  GgufBytes& integer(const std::string& name, std::uint32_t value) {
    return string(name), number(4, 4), number(value, 4), *this;
  }
  GgufBytes& integers(const std::string& name, const std::vector<std::uint32_t>& values) {
    string(name), number(9, 4), number(5, 4), number(values.size(), 8);
    for (const std::uint32_t value : values) number(value, 4);
    return *this;
  }
  GgufBytes& texts(const std::string& name, const std::vector<std::string>& values) {
    string(name), number(9, 4), number(8, 4), number(values.size(), 8);
    for (const std::string& value : values) string(value);
    return *this;
  }

  // n_bytes: a multiple of the alignment, 32.
  GgufBytes& tensor(const std::string& name, std::uint64_t n_bytes) {
    string(name), number(1, 4), number(n_bytes, 8), number(24, 4), number(data_bytes_, 8);
    data_bytes_ += n_bytes;
    return *this;
  }

  ModelShape read(std::size_t cut = 0) const {
    const auto path = std::filesystem::temp_directory_path() / ("kvturbo_gguf_" + std::to_string(getpid()) + ".gguf");
    const std::string padding(data_bytes_ > 0 ? (32 - bytes_.size() % 32) % 32 : 0, '\0');
    std::ofstream(path, std::ios::binary) << bytes_.substr(0, bytes_.size() - cut) << padding << std::string(data_bytes_, '\0');
    struct Remove {
      std::filesystem::path path;
      ~Remove() { std::filesystem::remove(path); }
    } remove{path};
    return read_model_shape(path);
  }

 private:
  void put(const char* data, std::size_t size) { bytes_.append(data, size); }
  void number(std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) bytes_ += static_cast<char>(value >> (8 * i) & 255);
  }
  void string(const std::string& value) { number(value.size(), 8), bytes_ += value; }

  std::string bytes_;
  std::uint64_t data_bytes_ = 0;
};

}  // namespace kvt::cli
