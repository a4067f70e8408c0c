#include "cache_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>

#include "cache_image.h"

namespace kvt::plugin {
namespace {

std::mutex g_live_mutex;
std::vector<CacheBuffer*> g_live;

CacheBuffer* context_of(ggml_backend_buffer_t buffer) { return static_cast<CacheBuffer*>(buffer->context); }

// ---- ggml_backend_buffer_i

void free_buffer(ggml_backend_buffer_t buffer) { delete context_of(buffer); }

void* get_base(ggml_backend_buffer_t buffer) { return context_of(buffer)->base(); }

// Hosts of backend API 2 place the tensors one by one; those of API 3 were placed when the buffer was made.
enum ggml_status init_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor) {
  CacheBuffer* cache = context_of(buffer);
  if (tensor->view_src == nullptr && cache->find(tensor->data) == nullptr) {
    cache->add(tensor, static_cast<char*>(tensor->data));
  }
  return GGML_STATUS_SUCCESS;
}

void memset_tensor(ggml_backend_buffer_t, ggml_tensor* tensor, uint8_t value, size_t offset, size_t size) {
  CacheTensor* cache = cache_tensor_of(tensor);
  if (cache != nullptr) image_fill(cache, cache->offset_of(tensor->data) + offset, size, value);
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor* tensor, const void* data, size_t offset, size_t size) {
  CacheTensor* cache = cache_tensor_of(tensor);
  if (cache != nullptr) image_set(cache, cache->offset_of(tensor->data) + offset, size, data);
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor* tensor, void* data, size_t offset, size_t size) {
  CacheTensor* cache = cache_tensor_of(tensor);
  if (cache != nullptr) image_get(cache, cache->offset_of(tensor->data) + offset, size, data);
}

// Rows that t covers, if it covers whole rows without gaps.
bool whole_rows(const CacheTensor& cache, const ggml_tensor* t, int64_t* first_row, int64_t* n_rows) {
  const size_t offset = cache.offset_of(t->data), size = host().ggml_nbytes(t);
  const auto row_bytes = cache.row_bytes();
  const size_t n_values_bytes = static_cast<size_t>(t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]) * sizeof(ggml_fp16_t);
  if (offset % row_bytes != 0 || size % row_bytes != 0 || size != n_values_bytes) return false;
  *first_row = static_cast<int64_t>(offset / row_bytes);
  *n_rows = static_cast<int64_t>(size / row_bytes);
  return true;
}

// Between streams of our own caches: codes, not values. ggml falls back to get and set where this returns false.
bool cpy_tensor(ggml_backend_buffer_t, const ggml_tensor* src, ggml_tensor* dst) {
  CacheTensor* from = cache_tensor_of(src);
  CacheTensor* to = cache_tensor_of(dst);
  int64_t from_row, to_row, n_from, n_to;
  if (from == nullptr || to == nullptr || !whole_rows(*from, src, &from_row, &n_from) ||
      !whole_rows(*to, dst, &to_row, &n_to)) {
    return false;
  }
  return n_from == n_to && image_copy_pages(from, from_row, to, to_row, n_to);
}

void clear(ggml_backend_buffer_t buffer, uint8_t value) {
  for (const auto& tensor : context_of(buffer)->tensors()) image_fill(tensor.get(), 0, tensor->image_bytes(), value);
}

}  // namespace

std::unique_ptr<CacheBuffer> CacheBuffer::create(size_t image_bytes, ggml_backend_buffer_type_t gpu_memory) {
  const size_t bytes = round_up(std::max<size_t>(image_bytes, 1), os_page_bytes());
  void* base = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  return std::unique_ptr<CacheBuffer>(new CacheBuffer(static_cast<char*>(base), bytes, gpu_memory));
}

CacheBuffer::~CacheBuffer() {
  {
    const std::lock_guard<std::mutex> lock(g_live_mutex);
    g_live.erase(std::remove(g_live.begin(), g_live.end(), this), g_live.end());
  }
  tensors_.clear();
  munmap(base_, bytes_);
}

ggml_backend_buffer_t CacheBuffer::to_ggml(std::unique_ptr<CacheBuffer> buffer, ggml_backend_buffer_type_t buft, size_t size) {
  ggml_backend_buffer_i table{};
  table.free_buffer = free_buffer;
  table.get_base = get_base;
  table.init_tensor = init_tensor;
  table.memset_tensor = memset_tensor;
  table.set_tensor = set_tensor;
  table.get_tensor = get_tensor;
  table.cpy_tensor = cpy_tensor;
  table.clear = clear;
  CacheBuffer* raw = buffer.release();
  raw->ggml_buffer_ = host().ggml_backend_buffer_init(buft, table, raw, size);
  const std::lock_guard<std::mutex> lock(g_live_mutex);
  g_live.push_back(raw);
  return raw->ggml_buffer_;
}

CacheTensor* CacheBuffer::add(const ggml_tensor* tensor, char* address) {
  auto created = std::make_unique<CacheTensor>(tensor, address, gpu_memory_);
  CacheTensor* result = created.get();
  const auto place = std::upper_bound(tensors_.begin(), tensors_.end(), address,
                                      [](const char* a, const std::unique_ptr<CacheTensor>& t) { return a < t->image(); });
  tensors_.insert(place, std::move(created));
  return result;
}

CacheTensor* CacheBuffer::find(const void* address) {
  const auto after = std::upper_bound(tensors_.begin(), tensors_.end(), static_cast<const char*>(address),
                                      [](const char* a, const std::unique_ptr<CacheTensor>& t) { return a < t->image(); });
  if (after == tensors_.begin()) return nullptr;
  CacheTensor* found = std::prev(after)->get();
  return found->contains(address) ? found : nullptr;
}

void CacheBuffer::update_ggml_size() {
  size_t bytes = 0;
  for (const auto& tensor : tensors_) bytes += round_up(tensor->storage_bytes(), os_page_bytes());
  if (ggml_buffer_ != nullptr) ggml_buffer_->size = bytes;
}

CacheBuffer* cache_buffer_of(ggml_backend_buffer_t buffer) {
  return buffer != nullptr && buffer->iface.free_buffer == free_buffer ? context_of(buffer) : nullptr;
}

CacheTensor* cache_tensor_of(const ggml_tensor* t) {
  if (t == nullptr || t->data == nullptr) return nullptr;
  CacheBuffer* buffer = cache_buffer_of(owner_of(t)->buffer);
  return buffer != nullptr ? buffer->find(t->data) : nullptr;
}

void internal::visit_live_buffers(void (*visit)(CacheBuffer*, void*), void* argument) {
  const std::lock_guard<std::mutex> lock(g_live_mutex);
  for (CacheBuffer* buffer : g_live) visit(buffer, argument);
}

}  // namespace kvt::plugin
