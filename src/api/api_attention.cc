// Attention: argument checks, then the driver.
#include <new>

#include "api/codec_object.h"
#include "cpu/attention_driver.h"

namespace {

constexpr uint32_t kMaxGroup = kvt::cpu::kMaxRows;

bool is_valid(const kvt_codec* codec, const kvt_attention* a) {
  if (codec == nullptr || a == nullptr || a->struct_size != sizeof(kvt_attention)) return false;
  if (a->n_streams == 0 || a->n_kv_heads == 0 || a->n_group == 0 || a->n_group > kMaxGroup || a->n_queries == 0) return false;
  if (a->n_cells > UINT32_MAX - kvt::kPageTokens) return false;
  if (a->q == nullptr || a->out == nullptr) return false;
  if (a->n_cells > 0) {
    if (a->k_pages == nullptr || a->v_pages == nullptr) return false;
    if (a->k_page_stride < codec->key.page_bytes || a->v_page_stride < codec->value.page_bytes) return false;
  }
  const bool is_plain = a->key_scale == nullptr && a->key_mean == nullptr && a->n_exact == 0 && a->n_recent == 0;
  if (codec->id == KVT_CODEC_F16 && !is_plain) return false;
  if (a->key_mean != nullptr && (a->key_mean_unit == nullptr || a->mean_cells == 0 || a->mean_cells % kvt::kPageTokens != 0)) return false;
  if (a->n_exact > KVT_MAX_EXACT || (a->n_exact > 0 && (a->exact_k == nullptr || a->exact_v == nullptr))) return false;
  if (a->n_recent > 0) {
    if (a->recent_cells == nullptr || a->recent_k == nullptr || a->recent_v == nullptr) return false;
    if (a->recent_window == 0 || a->recent_window > KVT_MAX_RECENT || a->recent_pinned > KVT_MAX_EXACT || a->n_recent > INT32_MAX) return false;
  }
  const uint64_t blocks = uint64_t{a->n_streams} * a->n_kv_heads * a->n_queries;
  return blocks <= UINT32_MAX / 2;
}

kvt::cpu::AttentionCall make_call(const kvt_codec* codec, const kvt_attention* attention) {
  return {&codec->key, &codec->value, codec->kernels, attention};
}

}  // namespace

extern "C" {

size_t kvt_attend_workspace_bytes(const kvt_codec* codec, const kvt_attention* attention, uint32_t n_threads) {
  if (!is_valid(codec, attention) || n_threads == 0) return 0;
  return kvt::cpu::attention_workspace_bytes(make_call(codec, attention), n_threads);
}

kvt_status kvt_attend_thread(const kvt_codec* codec, const kvt_attention* attention, void* workspace, uint32_t thread,
                             uint32_t n_threads) {
  if (!is_valid(codec, attention) || workspace == nullptr || thread >= n_threads) return KVT_ERROR_INVALID_ARGUMENT;
  kvt::cpu::attend_share(make_call(codec, attention), static_cast<uint8_t*>(workspace), thread, n_threads);
  return KVT_OK;
}

kvt_status kvt_attend(const kvt_codec* codec, const kvt_attention* attention) {
  const size_t bytes = kvt_attend_workspace_bytes(codec, attention, 1);
  if (bytes == 0) return KVT_ERROR_INVALID_ARGUMENT;
  constexpr std::align_val_t kAlignment{64};
  void* workspace = ::operator new(bytes, kAlignment, std::nothrow);
  if (workspace == nullptr) return KVT_ERROR_NO_MEMORY;
  const kvt_status status = kvt_attend_thread(codec, attention, workspace, 0, 1);  // one thread uses no counters
  ::operator delete(workspace, kAlignment);
  return status;
}

}  // extern "C"
