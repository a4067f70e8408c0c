// Where kvturbo keeps what it fetches and builds: ${KVTURBO_CACHE:-${XDG_CACHE_HOME:-~/.cache}/kvturbo}.
// scripts/cache_folder.sh describes the layout.
#pragma once

#include <filesystem>

namespace kvt::cli {

std::filesystem::path cache_folder();

// A fresh folder that only this user can read, removed with its contents at the end of the scope.
class ScratchFolder {
 public:
  // A folder inside parent, which is created if it is absent.
  explicit ScratchFolder(const std::filesystem::path& parent);
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace kvt::cli
