// Names, codec objects and sizes.
#include <cstring>
#include <iterator>
#include <new>

#include "api/codec_object.h"
#include "cpu/kernel_select.h"

namespace {

constexpr const char* kCodecNames[] = {"f16", "hybrid", "scalar43", "k4v3", "k3v3", "k3v2", "k2v2", "k8v4", "k8v3"};  // by kvt_codec_id
constexpr int kCodecCount = static_cast<int>(std::size(kCodecNames));

}  // namespace

extern "C" {

const char* kvt_version(void) { return "0.1.0"; }

kvt_status kvt_codec_from_name(const char* name, kvt_codec_id* id) {
  if (name == nullptr || id == nullptr) return KVT_ERROR_INVALID_ARGUMENT;
  for (int i = 0; i < kCodecCount; ++i) {
    if (std::strcmp(name, kCodecNames[i]) == 0) {
      *id = static_cast<kvt_codec_id>(i);
      return KVT_OK;
    }
  }
  return KVT_ERROR_UNKNOWN_CODEC;
}

const char* kvt_codec_name(kvt_codec_id id) { return kvt::is_known_codec(id) ? kCodecNames[id] : nullptr; }

kvt_status kvt_codec_create(kvt_codec_id id, uint32_t head_dim_k, uint32_t head_dim_v, kvt_codec** codec) {
  if (codec == nullptr) return KVT_ERROR_INVALID_ARGUMENT;
  if (!kvt::is_known_codec(id)) return KVT_ERROR_UNKNOWN_CODEC;
  if (!kvt::is_supported_head_dim(head_dim_k) || !kvt::is_supported_head_dim(head_dim_v)) return KVT_ERROR_HEAD_DIM;
  const kvt::cpu::KernelTable* kernels = kvt::cpu::process_kernels();
  if (kernels == nullptr) return KVT_ERROR_UNSUPPORTED_ISA;
  auto* created = new (std::nothrow) kvt_codec{id, kvt::make_side_layout(id, KVT_KEY, head_dim_k),
                                               kvt::make_side_layout(id, KVT_VALUE, head_dim_v), kernels};
  if (created == nullptr) return KVT_ERROR_NO_MEMORY;
  *codec = created;
  return KVT_OK;
}

void kvt_codec_destroy(kvt_codec* codec) { delete codec; }

const char* kvt_codec_isa(const kvt_codec* codec) { return codec != nullptr ? codec->kernels->name : ""; }

size_t kvt_page_bytes(const kvt_codec* codec, kvt_side side) {
  if (codec == nullptr || (side != KVT_KEY && side != KVT_VALUE)) return 0;
  return codec->layout(side).page_bytes;
}

size_t kvt_page_bytes_for(kvt_codec_id id, kvt_side side, uint32_t head_dim) {
  if (!kvt::is_known_codec(id) || !kvt::is_supported_head_dim(head_dim) || (side != KVT_KEY && side != KVT_VALUE)) return 0;
  return kvt::make_side_layout(id, side, head_dim).page_bytes;
}

}  // extern "C"
