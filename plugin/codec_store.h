// How caches are stored, and the codec objects of the process: one for each codec and pair of head dims, made when first asked for,
// kept until the process ends.
#ifndef KVT_PLUGIN_CODEC_STORE_H
#define KVT_PLUGIN_CODEC_STORE_H

#include <cstdint>
#include <map>
#include <string>

#include "kvturbo/kvturbo.h"

namespace kvt::plugin {

struct CacheOptions {
  kvt_codec_id codec = KVT_CODEC_K4V3;     // KVTURBO_CODEC
  std::map<int, kvt_codec_id> layer_codec;  // KVTURBO_LAYERS: layers that have another one
  // Only for codecs other than f16:
  bool is_conditioned = true;  // KVTURBO_CONDITION=on|off: key mean and scale
  int n_exact = 4;             // KVTURBO_SINKS: first cells of each stream that are also kept exact, 0..64
  bool has_codes_in_states = true;  // KVTURBO_STATE=codes|f16: whether saved states carry codes in the low bits of their values
  int n_recent = 48;           // KVTURBO_RECENT: newest tokens that a query attends exactly, 0..64

  kvt_codec_id codec_of_layer(int layer) const {
    const auto it = layer_codec.find(layer);
    return it != layer_codec.end() ? it->second : codec;
  }
};

// Call once, before any other function here.
void codec_store_select(const CacheOptions& options);
const CacheOptions& cache_options();
// The kernel table in use.
const char* codec_store_isa();

// nullptr if the codec does not know one of the head dims.
const kvt_codec* codec_store_get(kvt_codec_id id, int64_t head_dim_k, int64_t head_dim_v);

// Head dims are the same for all codecs.
bool is_known_head_dim(int64_t head_dim);
// "64, 80, ...": for messages.
std::string known_head_dims();

// Bytes of a row of n values in pages, per token. The head dim is not known yet: the largest over those that divide n;
// 0 if none does.
size_t largest_token_bytes(kvt_codec_id id, kvt_side side, int64_t n);

}  // namespace kvt::plugin

#endif
