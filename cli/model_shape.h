// What a model's GGUF file says about its KV cache: which layers keep one, how wide and how long it is, and how many bytes of
// weights stand beside it. The rules are llama.cpp's (llama-hparams.cpp, models/*.cpp of b11434).
#pragma once

#include "gguf_header.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace kvt::cli {

struct CacheLayer {
  int number = 0;
  std::uint32_t n_kv_heads = 0, key_dim = 0;
  std::uint32_t value_dim = 0;  // 0: MLA, one latent vector serves as key and value
  bool has_window = false;      // attends the newest ModelShape::window tokens only
};

struct ModelShape {
  std::string architecture;
  std::uint64_t context_length = 0;  // tokens that the model was trained on; 0: not said
  std::uint64_t n_layers = 0;        // with those that keep no cache
  std::vector<CacheLayer> layers;    // that keep one
  std::uint64_t window = 0;          // tokens; 0: no layer has a window
  std::uint64_t weight_bytes = 0;    // all files of the model
  // Of them, what one token needs: without idle experts, and without a table of embeddings that is only looked up.
  std::uint64_t active_weight_bytes = 0;
  std::vector<std::string> notes;  // what these figures leave out

  bool is_latent() const { return !layers.empty() && layers.front().value_dim == 0; }
  std::uint64_t kv_elements_per_token() const;  // of keys and values, all layers
};

ModelShape model_shape(const GgufHeader& header);

// Of a GGUF file, or of all files of a split model when the first one is given. Throws CliError.
ModelShape read_model_shape(const std::filesystem::path& file);

}  // namespace kvt::cli
