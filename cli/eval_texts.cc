#include "eval_texts.h"

#include "cache_folder.h"
#include "child_process.h"
#include "cli_error.h"
#include "file_hash.h"
#include "terminal_output.h"

#include <system_error>

namespace kvt::cli {

namespace fs = std::filesystem;

namespace {

using namespace std::chrono_literals;

// By the script of the source tree that this program was built in; an installed program may be without.
void fetch_texts(const std::string& name, const fs::path& path) {
  const fs::path script = fs::path(KVTURBO_SCRIPTS) / "get_texts.sh";
  if (!fs::exists(script)) {
    throw CliError(kExitFailure, "text '" + name + "'", "not in the cache: no " + path.string(),
                   "get it with scripts/get_texts.sh of kvturbo's sources");
  }
  StatusLine status;
  status.show("  fetching the texts of the evaluation");
  const CommandResult result = run_command({script.string()}, {}, 10min);
  if (received_signal() != 0) throw CliError(kExitFailure, "interrupted", "by a signal", "");
  if (result.succeeded) return;
  const std::size_t end = result.output.find_last_not_of('\n');
  const std::size_t begin = result.output.rfind('\n', end) + 1;
  throw CliError(kExitFailure, "text '" + name + "'", "not in the cache, and " + script.filename().string() + " failed",
                 result.output.substr(begin, end + 1 - begin));
}

}  // namespace

EvalText find_text(const std::string& name_or_path) {
  const bool is_name = name_or_path == "english" || name_or_path == "code";
  const fs::path path = is_name ? cache_folder() / "texts" / (name_or_path + ".txt") : fs::absolute(name_or_path);
  std::error_code error;
  if (is_name && !fs::exists(path, error)) fetch_texts(name_or_path, path);
  if (!fs::is_regular_file(path, error)) {
    throw CliError(kExitFailure, "text " + name_or_path, "no such file", "give english, code, or a text file");
  }
  return {is_name ? name_or_path : path.filename().string(), path, sha256_of(path)};
}

}  // namespace kvt::cli
