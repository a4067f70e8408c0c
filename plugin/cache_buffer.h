// A ggml buffer that holds the tensors of one KV cache: the reservation of their images and the CacheTensor of each.
#ifndef KVT_PLUGIN_CACHE_BUFFER_H
#define KVT_PLUGIN_CACHE_BUFFER_H

#include <memory>
#include <mutex>
#include <vector>

#include "cache_tensor.h"

namespace kvt::plugin {

class CacheBuffer {
 public:
  // Reserves image_bytes of addresses. nullptr if there are none left. gpu_memory: as for CacheTensor.
  static std::unique_ptr<CacheBuffer> create(size_t image_bytes, ggml_backend_buffer_type_t gpu_memory);
  // For a buffer of which only the size is known, as an RPC server gets it: plain memory, committed when it is first written, in which
  // adopt() finds the tensors of a cache later. nullptr if there are no addresses left.
  static std::unique_ptr<CacheBuffer> create_undecided(size_t bytes);
  ~CacheBuffer();
  CacheBuffer(const CacheBuffer&) = delete;
  CacheBuffer& operator=(const CacheBuffer&) = delete;

  // Wraps the buffer into a ggml object of the given type. The ggml object owns it from then on.
  static ggml_backend_buffer_t to_ggml(std::unique_ptr<CacheBuffer> buffer, ggml_backend_buffer_type_t buft, size_t size);

  char* base() const { return base_; }

  // Places a tensor's image at address, which is a multiple of os_page_bytes from base.
  CacheTensor* add(const ggml_tensor* tensor, char* address);
  // In an undecided buffer: the memory of a cache tensor is an image from now on, and what it holds already is kept. Tensors that are
  // not whole pages of the system stay plain memory.
  void adopt(const ggml_tensor* tensor);
  bool is_undecided() const { return is_undecided_; }
  void clear(uint8_t value);
  // The tensor whose image holds address; nullptr if none does.
  CacheTensor* find(const void* address);
  const std::vector<std::unique_ptr<CacheTensor>>& tensors() const { return tensors_; }

  // Sets the size that ggml reports for the buffer to what the tensors use.
  void update_ggml_size();

 private:
  CacheBuffer(char* base, size_t bytes, bool is_undecided, ggml_backend_buffer_type_t gpu_memory)
      : base_(base), bytes_(bytes), is_undecided_(is_undecided), gpu_memory_(gpu_memory) {}
  static std::unique_ptr<CacheBuffer> map(size_t bytes, int protection, bool is_undecided, ggml_backend_buffer_type_t gpu_memory);

  char* base_;
  size_t bytes_;
  bool is_undecided_;
  ggml_backend_buffer_type_t gpu_memory_;
  ggml_backend_buffer_t ggml_buffer_ = nullptr;
  std::vector<std::unique_ptr<CacheTensor>> tensors_;  // by address
};

// The cache buffer behind a ggml buffer; nullptr if it is not one of ours.
CacheBuffer* cache_buffer_of(ggml_backend_buffer_t buffer);

// The cache tensor that t, or the view t, lies in; nullptr if it is not in a cache of ours.
CacheTensor* cache_tensor_of(const ggml_tensor* t);

namespace internal {
void visit_live_buffers(void (*visit)(CacheBuffer*, void*), void* argument);
}  // namespace internal

// Which cache buffers there are, and what their tensors are (pages or rows), change under this lock alone: other contexts' threads count them.
std::unique_lock<std::mutex> lock_cache_buffers();

// Calls visit(CacheBuffer&) for all cache buffers of the process, under that lock.
template <typename Visit>
void for_each_cache_buffer(Visit visit) {
  internal::visit_live_buffers([](CacheBuffer* b, void* argument) { (*static_cast<Visit*>(argument))(*b); }, &visit);
}

}  // namespace kvt::plugin

#endif
