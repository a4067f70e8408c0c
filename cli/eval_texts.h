// The texts of the evaluation: by name, out of the cache (scripts/get_texts.sh fetches them when they are first asked for), or
// a file of the user.
#pragma once

#include <filesystem>
#include <string>

namespace kvt::cli {

struct EvalText {
  std::string name;  // "english", "code", or the file's name without its folder
  std::filesystem::path path;
  std::string sha256;
};

// Throws CliError if there is no such text.
EvalText find_text(const std::string& name_or_path);

}  // namespace kvt::cli
