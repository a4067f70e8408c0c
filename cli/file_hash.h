// Checksums: of files by the system's sha256sum, of short texts by a hash of our own that names files.
#pragma once

#include <filesystem>
#include <string>

namespace kvt::cli {

// 64 hex digits. Throws CliError if the file cannot be read.
std::string sha256_of(const std::filesystem::path& file);

// 16 hex digits (FNV-1a). Two texts may share it, so whoever looks something up by it compares the texts too.
std::string short_hash(const std::string& text);

}  // namespace kvt::cli
