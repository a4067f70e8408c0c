#include "codec_store.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

namespace kvt::plugin {
namespace {

CacheOptions g_options;
std::mutex g_mutex;
std::map<std::tuple<kvt_codec_id, int64_t, int64_t>, const kvt_codec*> g_codecs;

}  // namespace

void codec_store_select(const CacheOptions& options) { g_options = options; }
const CacheOptions& cache_options() { return g_options; }

const char* codec_store_isa() {
  const kvt_codec* codec = codec_store_get(g_options.codec, 64, 64);
  return codec != nullptr ? kvt_codec_isa(codec) : "";
}

const kvt_codec* codec_store_get(kvt_codec_id id, int64_t head_dim_k, int64_t head_dim_v) {
  if (!is_known_head_dim(head_dim_k) || !is_known_head_dim(head_dim_v)) return nullptr;
  const std::lock_guard<std::mutex> lock(g_mutex);
  const kvt_codec*& codec = g_codecs[{id, head_dim_k, head_dim_v}];
  if (codec == nullptr) {
    kvt_codec* created = nullptr;
    kvt_codec_create(id, static_cast<uint32_t>(head_dim_k), static_cast<uint32_t>(head_dim_v), &created);
    codec = created;
  }
  return codec;
}

bool is_known_head_dim(int64_t head_dim) {
  return head_dim > 0 && head_dim <= KVT_MAX_HEAD_DIM &&
         kvt_page_bytes_for(g_options.codec, KVT_KEY, static_cast<uint32_t>(head_dim)) != 0;
}

std::string known_head_dims() {
  std::string list;
  for (int64_t d = 1; d <= KVT_MAX_HEAD_DIM; ++d) {
    if (is_known_head_dim(d)) list += (list.empty() ? "" : ", ") + std::to_string(d);
  }
  return list;
}

size_t largest_token_bytes(kvt_codec_id id, kvt_side side, int64_t n) {
  size_t largest = 0;
  for (int64_t d = 1; d <= std::min<int64_t>(n, KVT_MAX_HEAD_DIM); ++d) {
    if (n % d != 0 || !is_known_head_dim(d)) continue;
    const size_t page_bytes = kvt_page_bytes_for(id, side, static_cast<uint32_t>(d));
    largest = std::max(largest, page_bytes * static_cast<size_t>(n / d) / KVT_PAGE_TOKENS);
  }
  return largest;
}

}  // namespace kvt::plugin
