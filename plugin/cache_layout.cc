#include "cache_layout.h"

#include <string>

#include "cache_buffer.h"
#include "cache_buffer_type.h"
#include "cache_tasks.h"
#include "codec_store.h"

namespace kvt::plugin {
namespace {

constexpr const char* kNoAttention = "no flash attention reads it; start the host with -fa on or -fa auto (the default)";

bool is_undecided(const CacheTensor* cache) { return cache != nullptr && cache->state() == CacheTensor::State::kUndecided; }

// A pair that attention reads together. Both become pages or both rows: attention takes no mixture.
bool settle_pair(CacheTensor* keys, CacheTensor* values, const ggml_tensor* k, const ggml_tensor* v) {
  const auto rows = [&](const std::string& why) {
    bool is_done = true;
    if (is_undecided(keys)) is_done = keys->make_rows(why) && is_done;
    if (is_undecided(values)) is_done = values->make_rows(why) && is_done;
    return is_done;
  };
  if (keys == values)
    return rows("keys and values share one tensor (MLA), which this version does not compress; stored as f16");
  if (keys == nullptr || values == nullptr) return rows("its keys or values are not on this device; stored as f16");
  const kvt_codec* codec = codec_store_get(cache_options().codec_of_layer(keys->layer()), k->ne[0], v->ne[0]);
  if (codec == nullptr) {
    const int64_t unknown = is_known_head_dim(k->ne[0]) ? v->ne[0] : k->ne[0];
    return rows("head dim " + std::to_string(unknown) + " is not one of " + known_head_dims() + "; stored as f16");
  }
  if (keys->n_values() % k->ne[0] != 0 || values->n_values() % v->ne[0] != 0) {
    return rows("its rows are not a whole number of heads; stored as f16");
  }
  // Without memory for pages there is none for f16 rows either: the step fails, and the next one tries again.
  return (!is_undecided(keys) || keys->make_pages(codec, k->ne[0])) && (!is_undecided(values) || values->make_pages(codec, v->ne[0]));
}

// What a graph writes rows to by the name of a cache is one, also where its buffer was asked for by size.
void adopt_caches(const ggml_cgraph* graph) {
  for (int i = 0; i < graph->n_nodes; ++i) {
    if (graph->nodes[i]->op != host().op.set_rows) continue;
    const ggml_tensor* owner = owner_of(graph->nodes[i]);
    CacheBuffer* buffer = is_cache_tensor(owner) ? cache_buffer_of(owner->buffer) : nullptr;
    if (buffer != nullptr && buffer->is_undecided()) buffer->adopt(owner);
  }
}

bool learn_locked(const ggml_cgraph* graph) {
  adopt_caches(graph);
  bool is_done = true;
  for (int i = 0; i < graph->n_nodes; ++i) {
    const ggml_tensor* node = graph->nodes[i];
    if (node->op != host().op.flash_attn_ext) continue;
    CacheTensor* keys = cache_tensor_of(node->src[1]);
    CacheTensor* values = cache_tensor_of(node->src[2]);
    if (!is_undecided(keys) && !is_undecided(values)) continue;
    is_done = settle_pair(keys, values, node->src[1], node->src[2]) && is_done;
    for (CacheTensor* cache : {keys, values}) {
      const ggml_tensor* view = cache == keys ? node->src[1] : node->src[2];
      if (cache != nullptr) cache_buffer_of(owner_of(view)->buffer)->update_ggml_size();
    }
  }
  return is_done;
}

// In pages, nothing written yet, and the node is none of those that work on pages.
bool is_fresh_but_misused(const CacheTensor& cache, const ggml_tensor* node) {
  if (cache.state() != CacheTensor::State::kPages || cache.is_written()) return false;
  return node->op != host().op.flash_attn_ext && !(node->op == host().op.set_rows && can_set_rows(node, cache));
}

}  // namespace

void learn_from_attention(const ggml_cgraph* graph) {
  const auto lock = lock_cache_buffers();
  learn_locked(graph);
}

bool settle_all(const ggml_cgraph* graph) {
  const auto lock = lock_cache_buffers();
  if (!learn_locked(graph)) return false;
  bool is_done = true;
  for (int i = 0; i < graph->n_nodes; ++i) {
    const ggml_tensor* node = graph->nodes[i];
    if (host().is_empty_op(node->op)) continue;
    const auto settle = [&](const ggml_tensor* t) {
      CacheTensor* cache = cache_tensor_of(t);
      if (cache == nullptr || !(is_undecided(cache) || is_fresh_but_misused(*cache, node))) return;
      is_done = cache->make_rows(kNoAttention) && is_done;
      cache_buffer_of(owner_of(t)->buffer)->update_ggml_size();
    };
    settle(node);
    for (const ggml_tensor* src : node->src) {
      if (src != nullptr) settle(src);
    }
  }
  for (int i = 0; i < graph->n_nodes; ++i) {
    CacheTensor* cache = cache_tensor_of(graph->nodes[i]);
    if (cache != nullptr && !host().is_empty_op(graph->nodes[i]->op)) cache->set_written();
  }
  return is_done;
}

}  // namespace kvt::plugin
