#include "cache_folder.h"

#include "cli_error.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <system_error>

namespace kvt::cli {

namespace fs = std::filesystem;

fs::path cache_folder() {
  if (const char* folder = std::getenv("KVTURBO_CACHE"); folder && *folder) return folder;
  if (const char* folder = std::getenv("XDG_CACHE_HOME"); folder && *folder) return fs::path(folder) / "kvturbo";
  if (const char* home = std::getenv("HOME"); home && *home) return fs::path(home) / ".cache" / "kvturbo";
  throw CliError(kExitFailure, "cache folder", "none of KVTURBO_CACHE, XDG_CACHE_HOME and HOME is set", "set KVTURBO_CACHE");
}

ScratchFolder::ScratchFolder(const fs::path& parent) {
  std::error_code error;
  fs::create_directories(parent, error);
  std::string pattern = (parent / "kvturbo-XXXXXX").string();
  if (error || !mkdtemp(pattern.data())) {
    const std::string why = error ? error.message() : std::strerror(errno);
    throw CliError(kExitFailure, parent.string(), "cannot create a folder there: " + why,
                   "check its permissions and free space");
  }
  path_ = pattern;
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;  // a leftover scratch folder is no reason to fail
  fs::remove_all(path_, ignored);
}

}  // namespace kvt::cli
