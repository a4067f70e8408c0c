// How many bytes a cache takes: stock llama.cpp's of some type, or ours, for the shape of a model. Ours are what the plug-in
// reports (kv_bytes_per_token, kv_bytes_fixed in KVTURBO_REPORT), known before anything runs.
#pragma once

#include "kvturbo/kvturbo.h"
#include "model_shape.h"

#include <cstdint>
#include <string>
#include <vector>

namespace kvt::cli {

// A type of llama.cpp's cache, or a codec of ours.
struct CacheType {
  std::string name;
  bool is_ours = false;
  kvt_codec_id codec = KVT_CODEC_F16;  // if it is ours
  std::uint32_t block_values = 1;      // if it is stock: values of a block, and its bytes
  std::uint32_t block_bytes = 2;
};

// f16, q8_0, q4_0, then every codec of this build but f16, the default one first.
std::vector<CacheType> cache_types();

// What is kept exactly beside the codes: KVTURBO_RECENT, KVTURBO_SINKS, KVTURBO_CONDITION.
struct ExactRows {
  std::uint32_t n_recent = 48, n_sinks = 4;
  bool is_conditioned = true;
};

struct CacheSizes {
  double token_bytes = 0;         // of a token, all layers
  std::uint64_t fixed_bytes = 0;  // of a conversation, whatever its length
  std::uint64_t total_bytes = 0;  // of the cells of a context
  int n_layers_f16 = 0;           // that the codec cannot compress
  bool is_possible = true;        // false: llama.cpp refuses this type for these head dims
};

// As llama-server -c n_tokens -np n_slots: the context is shared out among the slots. Each has cells of its own.
CacheSizes cache_sizes(const ModelShape& shape, const CacheType& type, const ExactRows& exact, std::uint64_t n_tokens,
                       std::uint64_t n_slots);

// Bytes of an f16 cache that one token of decoding reads at that depth.
double f16_bytes_read(const ModelShape& shape, double depth);

// The host's working space beside weights and cache.
std::uint64_t working_bytes(std::uint64_t n_tokens);

// The most tokens whose cache fits in memory beside weights and working space, a multiple of what the host rounds to; 0: none.
std::uint64_t longest_context(const ModelShape& shape, const CacheType& type, const ExactRows& exact,
                              std::uint64_t memory_bytes, std::uint64_t n_slots);

}  // namespace kvt::cli
