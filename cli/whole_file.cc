#include "whole_file.h"

#include "cli_error.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace kvt::cli {

MappedFile::MappedFile(const std::filesystem::path& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status {};
  if (descriptor < 0 || fstat(descriptor, &status) != 0) {
    const std::string why = std::strerror(errno);
    if (descriptor >= 0) close(descriptor);
    throw CliError(kExitFailure, path.string(), "it cannot be read: " + why, "");
  }
  if (!S_ISREG(status.st_mode)) {
    close(descriptor);
    throw CliError(kExitFailure, path.string(), "it is not a file", "");
  }
  size_ = static_cast<size_t>(status.st_size);
  void* data = size_ > 0 ? mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0) : nullptr;
  close(descriptor);
  if (data == MAP_FAILED) throw CliError(kExitFailure, path.string(), std::string("it cannot be read: ") + std::strerror(errno), "");
  data_ = static_cast<const uint8_t*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

NewFile::NewFile(const std::filesystem::path& path, bool may_replace)
    : path_(path), temporary_(path.string() + ".part." + std::to_string(getpid())), may_replace_(may_replace) {
  if (!may_replace && std::filesystem::exists(path)) throw CliError(kExitUsage, path.string(), "it exists", "--force replaces it");
  descriptor_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail(errno);
}

NewFile::~NewFile() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(temporary_.c_str());
}

void NewFile::fail(int error) const { throw CliError(kExitFailure, path_.string(), std::string("it cannot be written: ") + std::strerror(error), ""); }

void NewFile::write(std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(descriptor_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(errno);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

void NewFile::write_at_start(std::span<const uint8_t> bytes) {
  if (lseek(descriptor_, 0, SEEK_SET) != 0) fail(errno);
  write(bytes);
}

void NewFile::finish() {
  if (fsync(descriptor_) != 0) fail(errno);
  // Without --force a file that came meanwhile stays.
  if (may_replace_ ? rename(temporary_.c_str(), path_.c_str()) != 0 : link(temporary_.c_str(), path_.c_str()) != 0) fail(errno);
  if (!may_replace_) unlink(temporary_.c_str());
  close(descriptor_);
  descriptor_ = -1;
}

}  // namespace kvt::cli
