// What finished measurements have given, so that an interrupted evaluation goes on where it stopped: the folder eval/ in the
// cache.
//   results/NAME.HASH.json     one measurement, small
//   logits/NAME.HASH.kld       base logits of llama-perplexity, large: a chunk of 1024 tokens is 50 to 270 MB with small models
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>

namespace kvt::cli {

class EvalStore {
 public:
  // fresh: find() knows only what this object has kept.
  explicit EvalStore(bool fresh);

  // key: everything that the result depends on. name: for people who look into the folder.
  std::optional<nlohmann::json> find(const std::string& name, const nlohmann::json& key) const;
  void keep(const std::string& name, const nlohmann::json& key, const nlohmann::json& result);

  std::filesystem::path logits_path(const std::string& name, const nlohmann::json& key) const;

 private:
  std::filesystem::path result_path(const std::string& name, const nlohmann::json& key) const;

  bool fresh_;
  std::set<std::filesystem::path> kept_;
};

std::filesystem::path logits_folder();

// Bytes of all base logits.
std::uint64_t logits_bytes();
// Removes them; returns their bytes.
std::uint64_t remove_logits();

}  // namespace kvt::cli
