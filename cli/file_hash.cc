#include "file_hash.h"

#include "child_process.h"
#include "cli_error.h"

#include <fmt/format.h>

#include <cstdint>

namespace kvt::cli {

using namespace std::chrono_literals;

std::string sha256_of(const std::filesystem::path& file) {
  const CommandResult result = run_command({"sha256sum", "--binary", file.string()}, {}, 10min);
  if (!result.succeeded || result.output.size() < 64) {
    throw CliError(kExitFailure, "sha256sum", "it failed on " + file.string() + ": " + result.how_it_ended, "");
  }
  return result.output.substr(0, 64);
}

std::string short_hash(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return fmt::format("{:016x}", hash);
}

}  // namespace kvt::cli
