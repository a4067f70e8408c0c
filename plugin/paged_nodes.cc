#include "paged_nodes.h"

#include <algorithm>
#include <string>

#include "cache_buffer.h"
#include "plugin_messages.h"

namespace kvt::plugin {
namespace {

size_t last_byte(const ggml_tensor* t) {
  size_t at = sizeof(ggml_fp16_t) - 1;
  for (int i = 0; i < GGML_MAX_DIMS; ++i) at += static_cast<size_t>(t->ne[i] - 1) * t->nb[i];
  return at;
}

}  // namespace

CacheTensor* paged_cache_of(const ggml_tensor* t) {
  CacheTensor* cache = cache_tensor_of(t);
  return cache != nullptr && cache->state() == CacheTensor::State::kPages ? cache : nullptr;
}

bool touches_pages(const ggml_tensor* node) {
  if (host().is_empty_op(node->op)) return false;
  if (paged_cache_of(node) != nullptr) return true;
  return std::any_of(std::begin(node->src), std::end(node->src),
                     [](const ggml_tensor* s) { return paged_cache_of(s) != nullptr; });
}

std::map<CacheTensor*, RowRange> row_ranges_of(const ggml_tensor* node, size_t alignment, size_t* scratch_bytes) {
  std::map<CacheTensor*, RowRange> ranges;
  const auto want = [&](const ggml_tensor* t) {
    CacheTensor* cache = paged_cache_of(t);
    if (cache == nullptr || t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3] == 0) return;
    const size_t offset = cache->offset_of(t->data);
    const auto begin = static_cast<int64_t>(offset / cache->row_bytes());
    const auto end = static_cast<int64_t>((offset + last_byte(t)) / cache->row_bytes()) + 1;
    const auto [it, is_new] = ranges.try_emplace(cache, RowRange{begin, end, 0});
    if (!is_new) {
      it->second.begin = std::min(it->second.begin, begin);
      it->second.end = std::max(it->second.end, end);
    }
  };
  want(node);
  for (const ggml_tensor* src : node->src) {
    if (src != nullptr) want(src);
  }
  *scratch_bytes = 0;
  for (auto& [cache, range] : ranges) {
    range.scratch_offset = *scratch_bytes;
    *scratch_bytes += round_up(static_cast<size_t>(range.end - range.begin) * cache->row_bytes(), alignment);
  }
  return ranges;
}

void say_if_slow(const ggml_tensor* node) {
  const std::string name = host().ggml_op_name(node->op);
  if (name != "ROPE" && name != "CPY") {
    say_once("the host runs " + name + " on the compressed cache: correct, but slow, as the cache is decoded each time");
  }
}

}  // namespace kvt::plugin
