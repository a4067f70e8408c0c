#include "cache_sizes.h"

#include <algorithm>

namespace kvt::cli {

namespace {

constexpr std::uint64_t kCellsMultiple = 256;  // llama.cpp rounds contexts and windows up to it
constexpr std::uint64_t kBatchTokens = 512;    // its n_ubatch: a window has room for a batch

std::uint64_t rounded_up(std::uint64_t n, std::uint64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Of one slot and layer (llama-kv-cache-iswa.cpp).
std::uint64_t n_cells(const ModelShape& shape, const CacheLayer& layer, std::uint64_t slot_tokens) {
  const std::uint64_t cells = rounded_up(slot_tokens, kCellsMultiple);
  return layer.has_window ? rounded_up(std::min(cells, shape.window + kBatchTokens), kCellsMultiple) : cells;
}

// One side of one layer.
struct SideSizes {
  double token_bytes = 0;
  std::uint64_t row_bytes = 0;     // exact rows, of each slot
  std::uint64_t learnt_bytes = 0;  // scale of keys, once
};

SideSizes stock_side(const CacheType& type, std::uint32_t n_kv_heads, std::uint32_t head_dim, bool* is_possible) {
  *is_possible = *is_possible && head_dim % type.block_values == 0;
  return {static_cast<double>(n_kv_heads) * head_dim / type.block_values * type.block_bytes};
}

// plugin/cache_tensor.cc: pages; newest rows and sinks in fp16; for keys their means (key_means.h) and scale.
SideSizes our_side(const CacheType& type, const ExactRows& exact, kvt_side side, std::uint32_t n_kv_heads,
                   std::uint32_t head_dim) {
  constexpr std::uint64_t kRecentSlack = 6;  // RecentRows::kSlack
  const double page_bytes = static_cast<double>(kvt_page_bytes_for(type.codec, side, head_dim));
  const std::uint64_t values = std::uint64_t{n_kv_heads} * head_dim;
  const std::uint64_t n_rows = exact.n_sinks + (exact.n_recent > 0 ? exact.n_recent + kRecentSlack : 0);
  SideSizes sizes = {page_bytes * n_kv_heads / KVT_PAGE_TOKENS, n_rows * values * sizeof(std::uint16_t), 0};
  if (side == KVT_KEY && exact.is_conditioned) {
    constexpr double kMeanCells = 512;  // KeyMeans::kCells
    sizes.token_bytes += static_cast<double>(values + n_kv_heads * sizeof(float)) / kMeanCells;
    sizes.learnt_bytes = values * sizeof(float);
  }
  return sizes;
}

}  // namespace

std::vector<CacheType> cache_types() {
  std::vector<CacheType> types = {{.name = "f16"},
                                  {.name = "q8_0", .block_values = 32, .block_bytes = 34},
                                  {.name = "q4_0", .block_values = 32, .block_bytes = 18}};
  const auto add = [&](kvt_codec_id id) { types.push_back({.name = kvt_codec_name(id), .is_ours = true, .codec = id}); };
  add(KVT_CODEC_K4V3);
  for (int i = 0; kvt_codec_name(static_cast<kvt_codec_id>(i)) != nullptr; ++i) {
    const auto id = static_cast<kvt_codec_id>(i);
    if (id != KVT_CODEC_F16 && id != KVT_CODEC_K4V3) add(id);
  }
  return types;
}

CacheSizes cache_sizes(const ModelShape& shape, const CacheType& type, const ExactRows& exact, std::uint64_t n_tokens,
                       std::uint64_t n_slots) {
  CacheSizes sizes;
  const CacheType f16;
  const std::uint64_t slot_tokens = (n_tokens + n_slots - 1) / n_slots;
  for (const CacheLayer& layer : shape.layers) {
    const bool is_compressed = type.is_ours && layer.value_dim > 0 &&
                               kvt_page_bytes_for(type.codec, KVT_KEY, layer.key_dim) > 0 &&
                               kvt_page_bytes_for(type.codec, KVT_VALUE, layer.value_dim) > 0;
    if (type.is_ours && !is_compressed) ++sizes.n_layers_f16;
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
      const std::uint32_t head_dim = side == KVT_KEY ? layer.key_dim : layer.value_dim;
      const SideSizes of_side = is_compressed
                                    ? our_side(type, exact, side, layer.n_kv_heads, head_dim)
                                    : stock_side(type.is_ours ? f16 : type, layer.n_kv_heads, head_dim, &sizes.is_possible);
      const double cells = static_cast<double>(n_cells(shape, layer, slot_tokens));
      sizes.token_bytes += of_side.token_bytes;
      sizes.fixed_bytes += of_side.row_bytes + of_side.learnt_bytes;
      sizes.total_bytes +=
          n_slots * (static_cast<std::uint64_t>(of_side.token_bytes * cells) + of_side.row_bytes) + of_side.learnt_bytes;
    }
  }
  return sizes;
}

double f16_bytes_read(const ModelShape& shape, double depth) {
  double bytes = 0;
  for (const CacheLayer& layer : shape.layers) {
    const double n_read = layer.has_window ? std::min(depth, static_cast<double>(shape.window)) : depth;
    bytes += 2.0 * layer.n_kv_heads * (layer.key_dim + layer.value_dim) * n_read;
  }
  return bytes;
}

// llama.cpp b11434 reported 23, 69 and 53 MiB for SmolLM2 at 8K, Qwen2.5-0.5B and Gemma3-270m at 32K tokens: the mask of a
// batch, in f16, and activations.
std::uint64_t working_bytes(std::uint64_t n_tokens) { return (std::uint64_t{64} << 20) + kBatchTokens * 2 * n_tokens; }

std::uint64_t longest_context(const ModelShape& shape, const CacheType& type, const ExactRows& exact,
                              std::uint64_t memory_bytes, std::uint64_t n_slots) {
  const std::uint64_t step = kCellsMultiple * n_slots;
  const auto fits = [&](std::uint64_t n_steps) {
    const std::uint64_t n_tokens = n_steps * step;
    return shape.weight_bytes + working_bytes(n_tokens) + cache_sizes(shape, type, exact, n_tokens, n_slots).total_bytes <=
           memory_bytes;
  };
  std::uint64_t low = 0, high = (memory_bytes >> 10) / step + 2;  // the working space alone takes 1 KiB a token
  while (low + 1 < high) {
    const std::uint64_t middle = (low + high) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low * step;
}

}  // namespace kvt::cli
