// Files that are read at once, and files that are there complete or not at all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

namespace kvt::cli {

// The bytes of a file, mapped. Throws CliError.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::span<const uint8_t> bytes() const { return {data_, size_}; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Written under another name in the same folder; gets its name when it is complete. Throws CliError.
class NewFile {
 public:
  // may_replace: a file of that name may be there.
  NewFile(const std::filesystem::path& path, bool may_replace);
  ~NewFile();  // removes what was not finished
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  void write(std::span<const uint8_t> bytes);
  void write_at_start(std::span<const uint8_t> bytes);
  void finish();

 private:
  [[noreturn]] void fail(int error) const;
  std::filesystem::path path_, temporary_;
  bool may_replace_;
  int descriptor_ = -1;
};

}  // namespace kvt::cli
