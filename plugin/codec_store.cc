#include "codec_store.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

namespace kvt::plugin {
namespace {

kvt_codec_id g_codec_id = KVT_CODEC_K4V3;
bool g_is_conditioned = true;
int g_n_exact = 0, g_n_recent = 0;
std::mutex g_mutex;
std::map<std::pair<int64_t, int64_t>, const kvt_codec*> g_codecs;

}  // namespace

void codec_store_select(kvt_codec_id id, bool is_conditioned, int n_exact, int n_recent) {
  g_codec_id = id;
  g_is_conditioned = is_conditioned;
  g_n_exact = n_exact;
  g_n_recent = n_recent;
}
bool codec_store_is_conditioned() { return g_is_conditioned; }
int codec_store_n_exact() { return g_n_exact; }
int codec_store_n_recent() { return g_n_recent; }
kvt_codec_id codec_store_id() { return g_codec_id; }
const char* codec_store_name() { return kvt_codec_name(g_codec_id); }

const char* codec_store_isa() {
  const kvt_codec* codec = codec_store_get(64, 64);
  return codec != nullptr ? kvt_codec_isa(codec) : "";
}

const kvt_codec* codec_store_get(int64_t head_dim_k, int64_t head_dim_v) {
  if (!is_known_head_dim(head_dim_k) || !is_known_head_dim(head_dim_v)) return nullptr;
  const std::lock_guard<std::mutex> lock(g_mutex);
  const kvt_codec*& codec = g_codecs[{head_dim_k, head_dim_v}];
  if (codec == nullptr) {
    kvt_codec* created = nullptr;
    kvt_codec_create(g_codec_id, static_cast<uint32_t>(head_dim_k), static_cast<uint32_t>(head_dim_v), &created);
    codec = created;
  }
  return codec;
}

bool is_known_head_dim(int64_t head_dim) {
  return head_dim > 0 && head_dim <= KVT_MAX_HEAD_DIM &&
         kvt_page_bytes_for(g_codec_id, KVT_KEY, static_cast<uint32_t>(head_dim)) != 0;
}

std::string known_head_dims() {
  std::string list;
  for (int64_t d = 1; d <= KVT_MAX_HEAD_DIM; ++d) {
    if (is_known_head_dim(d)) list += (list.empty() ? "" : ", ") + std::to_string(d);
  }
  return list;
}

size_t largest_token_bytes(kvt_side side, int64_t n) {
  size_t largest = 0;
  for (int64_t d = 1; d <= std::min<int64_t>(n, KVT_MAX_HEAD_DIM); ++d) {
    if (n % d != 0 || !is_known_head_dim(d)) continue;
    const size_t page_bytes = kvt_page_bytes_for(g_codec_id, side, static_cast<uint32_t>(d));
    largest = std::max(largest, page_bytes * static_cast<size_t>(n / d) / KVT_PAGE_TOKENS);
  }
  return largest;
}

}  // namespace kvt::plugin
