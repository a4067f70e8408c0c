#include "cache_buffer_type.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "cache_buffer.h"
#include "codec_store.h"
#include "no_throw.h"
#include "startup_report.h"
#include "wrapped_device.h"

namespace kvt::plugin {
namespace {

std::atomic<bool> g_was_cache_allocated{false};

ggml_backend_buffer_type_t inner_type(ggml_backend_buffer_type_t buft) {
  ggml_backend_dev_t inner = inner_device(buffer_type_device(buft));
  return inner->iface.get_buffer_type(inner);
}

// For the contents of caches; nullptr: host memory.
ggml_backend_buffer_type_t gpu_memory(ggml_backend_buffer_type_t buft) {
  return gpu_of(buffer_type_device(buft)) >= 0 ? inner_type(buft) : nullptr;
}

size_t image_slot_bytes(const ggml_tensor* t) { return round_up(host().ggml_nbytes(t), os_page_bytes()); }

// Memory of a cache tensor before its head dim is known.
size_t estimated_bytes(const ggml_tensor* t) {
  kvt_side side = KVT_KEY;
  int layer = 0;
  parse_cache_name(t->name, &side, &layer);
  const CacheOptions& options = cache_options();
  const kvt_codec_id codec = options.codec_of_layer(layer);
  const size_t token_bytes = largest_token_bytes(codec, side, t->ne[0]);
  if (token_bytes == 0) return image_slot_bytes(t);
  const size_t n_cells = round_up(static_cast<size_t>(t->ne[1]), KVT_PAGE_TOKENS);
  size_t n_exact = 0;
  if (codec != KVT_CODEC_F16) {
    n_exact = static_cast<size_t>(options.n_exact) + RecentRows::capacity_for(static_cast<size_t>(options.n_recent));
  }
  return round_up((token_bytes * n_cells + n_exact * t->nb[1]) * static_cast<size_t>(t->ne[2] * t->ne[3]), os_page_bytes());
}

// -ctk q8_0 and the like: the host has chosen a compression of its own.
void say_other_type(const ggml_tensor* t) {
  kvt_side side = KVT_KEY;
  parse_cache_name(t->name, &side, nullptr);
  const std::string type = host().ggml_type_name(t->type);
  report_not_compressed("the host keeps " + std::string(side == KVT_KEY ? "keys" : "values") + " as " + type +
                        "; leave out -ctk and -ctv (kvturbo needs f16, the default, there)");
}

// nullptr if there is no memory: the host says so and gives up.
ggml_backend_buffer_t to_ggml(std::unique_ptr<CacheBuffer> cache, ggml_backend_buffer_type_t buft, size_t size) {
  if (cache == nullptr) return nullptr;
  g_was_cache_allocated = true;
  return CacheBuffer::to_ggml(std::move(cache), buft, size);
}

ggml_backend_buffer_t alloc_cache(ggml_backend_buffer_type_t buft, ggml_tensor** tensors, int n_tensors) {
  size_t image_bytes = 0, size = 0;
  for (int i = 0; i < n_tensors; ++i) {
    if (tensors[i]->view_src != nullptr) continue;
    image_bytes += image_slot_bytes(tensors[i]);
    size += estimated_bytes(tensors[i]);
  }
  std::unique_ptr<CacheBuffer> cache = CacheBuffer::create(image_bytes, gpu_memory(buft));
  if (cache == nullptr) return nullptr;
  char* address = cache->base();
  for (int i = 0; i < n_tensors; ++i) {
    if (tensors[i]->view_src != nullptr) continue;
    cache->add(tensors[i], address);
    address += image_slot_bytes(tensors[i]);
  }
  address = cache->base();
  ggml_backend_buffer_t buffer = to_ggml(std::move(cache), buft, size);
  for (int i = 0; buffer != nullptr && i < n_tensors; ++i) {
    if (tensors[i]->view_src != nullptr) continue;
    tensors[i]->buffer = buffer;
    tensors[i]->data = address;
    address += image_slot_bytes(tensors[i]);
  }
  for (int i = 0; buffer != nullptr && i < n_tensors; ++i) {
    if (tensors[i]->view_src != nullptr && tensors[i]->buffer == nullptr) host().ggml_backend_view_init(tensors[i]);
  }
  return buffer;
}

// ---- backend API 2 has no call that shows the tensors of a buffer. It asks for the size of each tensor and then for a buffer
// of the sum, on one thread: the sizes asked for last tell what the buffer is for. The tensors are placed one after another.

struct AskedSizes {
  std::vector<size_t> cache_sizes;  // since the last tensor that is not of a cache
};
thread_local AskedSizes t_asked;

// The cache tensors asked for last make up a buffer of this size.
bool is_cache_size(size_t size) {
  size_t sum = 0;
  for (auto it = t_asked.cache_sizes.rbegin(); it != t_asked.cache_sizes.rend(); ++it) {
    sum += *it;
    if (sum == size) return true;
  }
  return false;
}

// ---- llama.cpp's RPC server asks for buffers by size alone: weights, caches and working space look alike until a graph names them.

bool is_rpc_server() {
  static const bool result = [] {
    char path[4096];
    const ssize_t n = readlink("/proc/self/exe", path, sizeof(path));
    const std::string name(path, n > 0 ? static_cast<size_t>(n) : 0);
    return name.find("rpc-server", name.rfind('/') + 1) != std::string::npos;
  }();
  return result;
}

// ---- ggml_backend_buffer_type_i

const char* get_name(ggml_backend_buffer_type_t buft) {
  ggml_backend_dev_t device = buffer_type_device(buft);
  return device->iface.get_name(device);
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
  ggml_backend_buffer_t buffer = nullptr;
  completes([&] {
    if (host().api_version < 3 && is_cache_size(size)) {
      t_asked.cache_sizes.clear();
      buffer = to_ggml(CacheBuffer::create(size, gpu_memory(buft)), buft, size);
    } else if (is_rpc_server() && gpu_memory(buft) == nullptr) {
      buffer = to_ggml(CacheBuffer::create_undecided(size), buft, size);
    } else {
      buffer = host().ggml_backend_buft_alloc_buffer(inner_type(buft), size);
    }
  });
  return buffer;
}

ggml_backend_buffer_t alloc_buffer_n(ggml_backend_buffer_type_t buft, ggml_tensor** tensors, int n_tensors) {
  bool is_cache = n_tensors > 0;
  for (int i = 0; i < n_tensors; ++i) {
    const ggml_tensor* owner = owner_of(tensors[i]);
    if (!is_cache_tensor(owner)) {
      is_cache = false;
      if (parse_cache_name(owner->name, nullptr, nullptr)) say_other_type(owner);
    }
  }
  if (is_cache) {
    ggml_backend_buffer_t buffer = nullptr;
    completes([&] { buffer = alloc_cache(buft, tensors, n_tensors); });
    return buffer;
  }
  return host().ggml_backend_buft_alloc_buffer_n(inner_type(buft), tensors, n_tensors);
}

size_t get_alignment(ggml_backend_buffer_type_t buft) { return host().ggml_backend_buft_get_alignment(inner_type(buft)); }
size_t get_max_size(ggml_backend_buffer_type_t buft) { return host().ggml_backend_buft_get_max_size(inner_type(buft)); }

// The size of the image: ggml asserts that it is not below the tensor's own.
size_t get_alloc_size(ggml_backend_buffer_type_t buft, const ggml_tensor* t) {
  if (host().api_version < 3) {
    if (is_cache_tensor(t) && t->view_src == nullptr) {
      t_asked.cache_sizes.push_back(image_slot_bytes(t));
      return image_slot_bytes(t);
    }
    t_asked.cache_sizes.clear();
    if (parse_cache_name(t->name, nullptr, nullptr) && t->view_src == nullptr) say_other_type(t);
  }
  return host().ggml_backend_buft_get_alloc_size(inner_type(buft), t);
}

// What --fit and the memory breakdown read: the compressed size.
size_t get_alloc_size_n(ggml_backend_buffer_type_t buft, ggml_tensor** tensors, int n_tensors) {
  const size_t alignment = get_alignment(buft);
  size_t sum = 0;
  for (int i = 0; i < n_tensors; ++i) {
    if (tensors[i]->view_src != nullptr) continue;
    sum += is_cache_tensor(tensors[i])
               ? estimated_bytes(tensors[i])
               : round_up(host().ggml_backend_buft_get_alloc_size(inner_type(buft), tensors[i]), alignment);
  }
  return sum;
}

// Not host memory: the CPU backend would read the images.
bool is_host(ggml_backend_buffer_type_t) { return false; }

}  // namespace

void cache_buffer_type_init(BufferTypeObject* buffer_type, ggml_backend_dev_t device) {
  buffer_type->init(
      {get_name, alloc_buffer, alloc_buffer_n, get_alignment, get_max_size, get_alloc_size, get_alloc_size_n, is_host}, device);
}

bool is_cache_tensor(const ggml_tensor* t) { return t->type == GGML_TYPE_F16 && parse_cache_name(t->name, nullptr, nullptr); }

bool was_cache_allocated() { return g_was_cache_allocated; }

}  // namespace kvt::plugin
