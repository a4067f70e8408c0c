#include "eval_store.h"

#include "cache_folder.h"
#include "child_process.h"
#include "cli_error.h"
#include "file_hash.h"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <system_error>

namespace kvt::cli {

namespace fs = std::filesystem;

namespace {

fs::path eval_folder() { return cache_folder() / "eval"; }

// "k4v3:sinks=0" -> "k4v3_sinks_0"
std::string file_name(const std::string& name, const nlohmann::json& key) {
  std::string safe = name;
  std::replace_if(
      safe.begin(), safe.end(), [](unsigned char c) { return !std::isalnum(c) && c != '.' && c != '-'; }, '_');
  return safe + "." + short_hash(key.dump());
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    throw CliError(kExitFailure, folder.string(), "cannot be created: " + error.message(),
                   "check its permissions and free space");
  }
}

}  // namespace

EvalStore::EvalStore(bool fresh) : fresh_(fresh) {
  make_folder(eval_folder() / "results");
  make_folder(logits_folder());
}

fs::path EvalStore::result_path(const std::string& name, const nlohmann::json& key) const {
  return eval_folder() / "results" / (file_name(name, key) + ".json");
}

fs::path EvalStore::logits_path(const std::string& name, const nlohmann::json& key) const {
  return logits_folder() / (file_name(name, key) + ".kld");
}

std::optional<nlohmann::json> EvalStore::find(const std::string& name, const nlohmann::json& key) const {
  const fs::path path = result_path(name, key);
  if (fresh_ && !kept_.contains(path)) return std::nullopt;
  const nlohmann::json stored = nlohmann::json::parse(read_file(path), nullptr, false);
  if (!stored.is_object() || !stored.contains("result") || stored.value("key", nlohmann::json()) != key) return std::nullopt;
  return stored["result"];
}

void EvalStore::keep(const std::string& name, const nlohmann::json& key, const nlohmann::json& result) {
  const fs::path path = result_path(name, key);
  const fs::path temporary = path.string() + ".tmp";
  {
    std::ofstream file(temporary);
    file << nlohmann::json{{"key", key}, {"result", result}}.dump(2) << "\n";
    if (!file.flush()) {
      throw CliError(kExitFailure, temporary.string(), "cannot be written", "check the permissions and the free space");
    }
  }
  fs::rename(temporary, path);
  kept_.insert(path);
}

fs::path logits_folder() { return eval_folder() / "logits"; }

std::uint64_t logits_bytes() {
  std::uint64_t bytes = 0;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(logits_folder(), error)) bytes += entry.file_size();
  return bytes;
}

std::uint64_t remove_logits() {
  const std::uint64_t bytes = logits_bytes();
  std::error_code error;
  fs::remove_all(logits_folder(), error);
  if (error) throw CliError(kExitFailure, logits_folder().string(), "cannot be removed: " + error.message(), "");
  return bytes;
}

}  // namespace kvt::cli
