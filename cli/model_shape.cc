#include "model_shape.h"

#include "cli_error.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace kvt::cli {

namespace fs = std::filesystem;

namespace {

// Which layers have a window is part of the architecture, unless the file lists them: of `period` layers all have one but the
// last, or but the first.
struct WindowRule {
  const char* architecture;
  std::uint64_t period;
  bool is_full_first = false;
  std::uint64_t window = 0;  // if the file does not say
  bool is_fixed = false;     // whatever the file says
};

constexpr std::array<WindowRule, 16> kWindowRules = {{{"afmoe", 4},
                                                      {"cohere2", 4},
                                                      {"cohere2moe", 4, true},
                                                      {"exaone-moe", 4, false, 128},
                                                      {"exaone4", 4, false, 4096},
                                                      {"gemma2", 2, false, 4096},
                                                      {"gemma3", 6},
                                                      {"gemma3n", 5},
                                                      {"gpt-oss", 2},
                                                      {"laguna", 4, true},
                                                      {"llama4", 4, false, 8192, true},
                                                      {"mellum", 4},
                                                      {"muse-glimmer", 4},
                                                      {"olmo2", 4},
                                                      {"plamo3", 8},
                                                      {"smallthinker", 4, true, 4096, true}}};

std::uint64_t of_layer(const std::vector<std::uint64_t>& list, std::uint64_t layer, std::uint64_t otherwise) {
  return list.empty() ? otherwise : list.size() == 1 ? list.front() : layer < list.size() ? list[layer] : otherwise;
}

// 1 for each layer with a window. Sets the window to 0 if there is none.
std::vector<bool> window_layers(const GgufHeader& header, ModelShape* shape) {
  std::vector<bool> has_window(shape->n_layers, false);
  const auto rule = std::find_if(kWindowRules.begin(), kWindowRules.end(),
                                 [&](const WindowRule& r) { return shape->architecture == r.architecture; });
  const bool is_known = rule != kWindowRules.end();
  shape->window = header.number("attention.sliding_window", is_known ? rule->window : 0);
  if (is_known && rule->is_fixed && shape->window > 0) shape->window = rule->window;
  if (shape->architecture == "exaone4" && shape->n_layers != 64) shape->window = 0;  // the 32B model alone has one
  if (shape->window == 0) return has_window;
  const std::vector<std::uint64_t> listed = header.list("attention.sliding_window_pattern");
  const std::uint64_t period = listed.size() == 1 ? listed.front() : is_known ? rule->period : 0;
  for (std::uint64_t layer = 0; layer < shape->n_layers; ++layer) {
    if (listed.size() > 1) {
      has_window[layer] = layer < listed.size() && listed[layer] != 0;
    } else if (period > 0) {
      has_window[layer] = layer % period != (is_known && rule->is_full_first ? 0 : period - 1);
    }
  }
  if (std::none_of(has_window.begin(), has_window.end(), [](bool has) { return has; })) shape->window = 0;
  return has_window;
}

// Layers behind the last one that has keys and values of its own use those of earlier layers.
std::uint64_t layers_with_own_cache(const GgufHeader& header, const ModelShape& shape) {
  if (shape.architecture == "gemma3n") return 20;
  return shape.n_layers - std::min(shape.n_layers, header.number("attention.shared_kv_layers", 0));
}

// Recurrent layers keep a state of fixed size instead.
bool is_recurrent(const GgufHeader& header, std::uint64_t layer) {
  const std::vector<std::uint64_t> listed = header.list("attention.recurrent_layers");
  if (!listed.empty()) return of_layer(listed, layer, 0) != 0;
  const std::uint64_t interval = header.number("full_attention_interval", 0);
  return interval > 0 && (layer + 1) % interval != 0;
}

std::uint64_t active_bytes(const GgufHeader& header) {
  const bool has_output =
      std::any_of(header.tensors.begin(), header.tensors.end(), [](const GgufTensor& t) { return t.name == "output.weight"; });
  const double n_experts = static_cast<double>(header.number("expert_count", 0));
  const double n_used = static_cast<double>(header.number("expert_used_count", 0));
  double bytes = 0;
  for (const GgufTensor& tensor : header.tensors) {
    const bool is_looked_up =
        tensor.name.starts_with("per_layer_token_embd") || (has_output && tensor.name == "token_embd.weight");
    const bool is_expert = n_experts > 0 && tensor.name.find("_exps.") != std::string::npos;
    if (!is_looked_up) bytes += static_cast<double>(tensor.bytes) * (is_expert ? n_used / n_experts : 1);
  }
  return static_cast<std::uint64_t>(bytes);
}

// "m-00001-of-00003.gguf" -> the path of part 2 of 3.
fs::path split_path(const fs::path& first, std::uint64_t part, std::uint64_t n_parts) {
  const std::string ending = fmt::format("-{:05}-of-{:05}.gguf", 1, n_parts);
  std::string path = first.string();
  if (!path.ends_with(ending)) {
    throw CliError(kExitFailure, path, fmt::format("one of {} files of a model, and not the first", n_parts),
                   "give the file that ends in " + ending);
  }
  return path.substr(0, path.size() - ending.size()) + fmt::format("-{:05}-of-{:05}.gguf", part, n_parts);
}

}  // namespace

std::uint64_t ModelShape::kv_elements_per_token() const {
  std::uint64_t n = 0;
  for (const CacheLayer& layer : layers) n += std::uint64_t{layer.n_kv_heads} * (layer.key_dim + layer.value_dim);
  return n;
}

ModelShape model_shape(const GgufHeader& header) {
  ModelShape shape;
  shape.architecture = header.architecture();
  shape.context_length = header.number("context_length", 0);
  shape.n_layers = std::min<std::uint64_t>(header.number("block_count", 0), 4096);
  // Layers that only draft tokens keep none in the main context.
  shape.n_layers -= std::min(shape.n_layers, header.number("nextn_predict_layers", 0));

  const std::vector<std::uint64_t> heads = header.list("attention.head_count"),
                                   kv_heads = header.list("attention.head_count_kv");
  const std::uint64_t n_heads = of_layer(heads, 0, 0);
  const std::uint64_t width = n_heads > 0 ? header.number("embedding_length", 0) / n_heads : 0;
  const std::uint64_t key_dim = header.number("attention.key_length", width);
  const std::uint64_t value_dim = header.number("attention.value_length", width);
  const bool is_latent = header.number("attention.key_length_mla", 0) > 0;
  const std::vector<bool> has_window = window_layers(header, &shape);
  const std::uint64_t n_own = layers_with_own_cache(header, shape);
  std::uint64_t n_recurrent = 0;
  for (std::uint64_t i = 0; i < shape.n_layers && i < n_own; ++i) {
    const std::uint64_t n_kv_heads = of_layer(kv_heads, i, of_layer(heads, i, 0));
    if (n_kv_heads == 0 || is_recurrent(header, i)) {
      ++n_recurrent;
      continue;
    }
    CacheLayer layer{.number = static_cast<int>(i), .n_kv_heads = static_cast<std::uint32_t>(n_kv_heads)};
    layer.has_window = has_window[i];
    layer.key_dim = static_cast<std::uint32_t>(layer.has_window ? header.number("attention.key_length_swa", key_dim) : key_dim);
    layer.value_dim = static_cast<std::uint32_t>(is_latent          ? 0
                                                 : layer.has_window ? header.number("attention.value_length_swa", value_dim)
                                                                    : value_dim);
    if (layer.key_dim > 0) shape.layers.push_back(layer);
  }
  if (n_recurrent > 0) {
    shape.notes.push_back(
        fmt::format("{} of {} layers keep no keys and values; the state of fixed size that recurrent ones keep is not counted",
                    n_recurrent, shape.n_layers));
  }
  if (n_own < shape.n_layers) {
    shape.notes.push_back(fmt::format("{} layers use the keys and values of earlier ones", shape.n_layers - n_own));
  }
  if (header.number("attention.indexer.key_length", 0) > 0) {
    shape.notes.push_back("the keys of its indexer are a cache of their own, which is neither compressed nor counted");
  }
  shape.weight_bytes = header.file_bytes;
  shape.active_weight_bytes = header.tensors.empty() ? header.file_bytes : active_bytes(header);
  return shape;
}

ModelShape read_model_shape(const fs::path& file) {
  GgufHeader header = read_gguf_header(file);
  const auto split = header.numbers.find("split.count");
  const std::uint64_t n_parts = split != header.numbers.end() && !split->second.empty() ? split->second.front() : 1;
  for (std::uint64_t part = 2; part <= n_parts; ++part) {
    const GgufHeader next = read_gguf_header(split_path(file, part, n_parts));
    header.file_bytes += next.file_bytes;
    header.tensors.insert(header.tensors.end(), next.tensors.begin(), next.tensors.end());
  }
  return model_shape(header);
}

}  // namespace kvt::cli
