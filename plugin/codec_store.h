// The codec objects of the process: one for each pair of head dims, made when first asked for, kept until the process ends.
#ifndef KVT_PLUGIN_CODEC_STORE_H
#define KVT_PLUGIN_CODEC_STORE_H

#include <cstdint>
#include <string>

#include "kvturbo/kvturbo.h"

namespace kvt::plugin {

// Sets how all caches are stored. Call once, before any other function here.
void codec_store_select(kvt_codec_id id, bool is_conditioned, int n_exact, int n_recent);
// Whether keys are conditioned, how many first cells of a stream are kept exact as well, and how many of the newest tokens are
// attended exactly; all only for codecs other than f16.
bool codec_store_is_conditioned();
int codec_store_n_exact();
int codec_store_n_recent();
kvt_codec_id codec_store_id();
const char* codec_store_name();
// The kernel table in use.
const char* codec_store_isa();

// nullptr if the codec does not know one of the head dims.
const kvt_codec* codec_store_get(int64_t head_dim_k, int64_t head_dim_v);

bool is_known_head_dim(int64_t head_dim);
// "64, 80, ...": for messages.
std::string known_head_dims();

// Bytes of a row of n values in pages, per token. The head dim is not known yet: the largest over those that divide n;
// 0 if none does.
size_t largest_token_bytes(kvt_side side, int64_t n);

}  // namespace kvt::plugin

#endif
