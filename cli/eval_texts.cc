#include "eval_texts.h"

#include "cache_folder.h"
#include "cli_error.h"
#include "file_hash.h"

#include <system_error>

namespace kvt::cli {

namespace fs = std::filesystem;

EvalText find_text(const std::string& name_or_path) {
  std::error_code error;
  const bool is_name = name_or_path == "english" || name_or_path == "code";
  const fs::path path = is_name ? cache_folder() / "texts" / (name_or_path + ".txt") : fs::absolute(name_or_path);
  if (!fs::is_regular_file(path, error)) {
    if (is_name) {
      throw CliError(kExitFailure, "text '" + name_or_path + "'", "not in the cache: no " + path.string(),
                     "get it with scripts/get_texts.sh");
    }
    throw CliError(kExitFailure, "text " + name_or_path, "no such file", "give english, code, or a text file");
  }
  return {is_name ? name_or_path : path.filename().string(), path, sha256_of(path)};
}

}  // namespace kvt::cli
