#include "cache_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "cache_image.h"
#include "graph_runner.h"
#include "no_throw.h"
#include "plugin_messages.h"

namespace kvt::plugin {
namespace {

std::mutex g_live_mutex;
std::vector<CacheBuffer*> g_live;

CacheBuffer* context_of(ggml_backend_buffer_t buffer) { return static_cast<CacheBuffer*>(buffer->context); }

constexpr const char* kCannotRead = "no memory to read the KV cache; use a smaller context (-c)";
constexpr const char* kCannotWrite = "no memory to write to the KV cache; use a smaller context (-c)";

// ggml has no way to report a failure from these functions and ends the process in its own ones. So do we: to go on would mean a cache
// that holds something else than the host thinks.
template <typename Work>
void complete_or_abort(const char* no_memory, Work work) {
  if (completes(work)) return;
  say(no_memory);
  std::abort();
}

// ---- ggml_backend_buffer_i

void free_buffer(ggml_backend_buffer_t buffer) { delete context_of(buffer); }

void* get_base(ggml_backend_buffer_t buffer) { return context_of(buffer)->base(); }

// Hosts of backend API 2 place the tensors one by one; those of API 3 were placed when the buffer was made.
enum ggml_status init_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor) {
  CacheBuffer* cache = context_of(buffer);
  if (cache->is_undecided() || tensor->view_src != nullptr || cache->find(tensor->data) != nullptr) return GGML_STATUS_SUCCESS;
  const auto lock = lock_cache_buffers();
  return completes([&] { cache->add(tensor, static_cast<char*>(tensor->data)); }) ? GGML_STATUS_SUCCESS : GGML_STATUS_ALLOC_FAILED;
}

// In undecided buffers there are other tensors as well.
char* plain_data(ggml_backend_buffer_t buffer, const ggml_tensor* tensor) {
  return context_of(buffer)->is_undecided() ? static_cast<char*>(tensor->data) : nullptr;
}

void memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, uint8_t value, size_t offset, size_t size) {
  if (CacheTensor* cache = cache_tensor_of(tensor)) {
    complete_or_abort(kCannotWrite, [&] { image_fill(cache, cache->offset_of(tensor->data) + offset, size, value); });
  } else if (char* plain = plain_data(buffer, tensor)) {
    std::memset(plain + offset, value, size);
  }
}

void set_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset, size_t size) {
  if (CacheTensor* cache = cache_tensor_of(tensor)) {
    complete_or_abort(kCannotWrite, [&] { image_set(cache, cache->offset_of(tensor->data) + offset, size, data); });
  } else if (char* plain = plain_data(buffer, tensor)) {
    std::memcpy(plain + offset, data, size);
  }
}

void get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, void* data, size_t offset, size_t size) {
  if (CacheTensor* cache = cache_tensor_of(tensor)) {
    complete_or_abort(kCannotRead, [&] { image_get(cache, cache->offset_of(tensor->data) + offset, size, data); });
  } else if (const char* plain = plain_data(buffer, tensor)) {
    std::memcpy(data, plain + offset, size);
  }
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
  if (from == nullptr && to == nullptr) {
    const CacheBuffer* src_buffer = cache_buffer_of(owner_of(src)->buffer);
    const CacheBuffer* dst_buffer = cache_buffer_of(owner_of(dst)->buffer);
    const bool is_plain = src_buffer != nullptr && src_buffer->is_undecided() && dst_buffer != nullptr && dst_buffer->is_undecided();
    if (is_plain) std::memcpy(dst->data, src->data, host().ggml_nbytes(src));
    return is_plain;
  }
  if (from == nullptr || to == nullptr || !whole_rows(*from, src, &from_row, &n_from) ||
      !whole_rows(*to, dst, &to_row, &n_to)) {
    return false;
  }
  bool is_copied = false;
  complete_or_abort(kCannotWrite, [&] { is_copied = n_from == n_to && image_copy_pages(from, from_row, to, to_row, n_to); });
  return is_copied;
}

void clear_buffer(ggml_backend_buffer_t buffer, uint8_t value) {
  complete_or_abort(kCannotWrite, [&] { context_of(buffer)->clear(value); });
}

}  // namespace

std::unique_ptr<CacheBuffer> CacheBuffer::map(size_t bytes, int protection, bool is_undecided, ggml_backend_buffer_type_t gpu_memory) {
  bytes = round_up(std::max<size_t>(bytes, 1), os_page_bytes());
  void* base = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  return std::unique_ptr<CacheBuffer>(new CacheBuffer(static_cast<char*>(base), bytes, is_undecided, gpu_memory));
}

std::unique_ptr<CacheBuffer> CacheBuffer::create(size_t image_bytes, ggml_backend_buffer_type_t gpu_memory) {
  return map(image_bytes, PROT_NONE, false, gpu_memory);
}

std::unique_ptr<CacheBuffer> CacheBuffer::create_undecided(size_t bytes) { return map(bytes, PROT_READ | PROT_WRITE, true, nullptr); }

CacheBuffer::~CacheBuffer() {
  {
    const auto lock = lock_cache_buffers();
    g_live.erase(std::remove(g_live.begin(), g_live.end(), this), g_live.end());
  }
  if (gpu_memory_ != nullptr) finish_all_graphs();  // what they have left to do may concern these tensors
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
  table.clear = clear_buffer;
  CacheBuffer* raw = buffer.get();
  const auto lock = lock_cache_buffers();
  g_live.push_back(raw);
  raw->ggml_buffer_ = host().ggml_backend_buffer_init(buft, table, raw, size);
  buffer.release();
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

void CacheBuffer::adopt(const ggml_tensor* tensor) {
  auto* address = static_cast<char*>(tensor->data);
  const size_t size = host().ggml_nbytes(tensor);
  const bool is_inside = address >= base_ && size <= bytes_ && static_cast<size_t>(address - base_) <= bytes_ - size;
  if (!is_undecided_ || !is_inside || find(address) != nullptr) return;
  if (static_cast<size_t>(address - base_) % os_page_bytes() != 0 || size % os_page_bytes() != 0) return;
  add(tensor, address)->open_image();  // it is; the tensor does not know yet
}

// Zeros give memory back to the system, or never take it.
void CacheBuffer::clear(uint8_t value) {
  if (is_undecided_ && value == 0) madvise(base_, bytes_, MADV_DONTNEED);
  char* end = base_;  // of what is cleared
  for (const auto& tensor : tensors_) {
    if (is_undecided_ && value != 0) std::memset(end, value, static_cast<size_t>(tensor->image() - end));
    image_fill(tensor.get(), 0, tensor->image_bytes(), value);
    end = tensor->image() + tensor->image_bytes();
  }
  if (is_undecided_ && value != 0) std::memset(end, value, static_cast<size_t>(base_ + bytes_ - end));
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
  // An RPC client names places in the buffer that it was given: its size stays.
  if (ggml_buffer_ != nullptr && !is_undecided_) ggml_buffer_->size = bytes;
}

CacheBuffer* cache_buffer_of(ggml_backend_buffer_t buffer) {
  return buffer != nullptr && buffer->iface.free_buffer == free_buffer ? context_of(buffer) : nullptr;
}

CacheTensor* cache_tensor_of(const ggml_tensor* t) {
  if (t == nullptr || t->data == nullptr) return nullptr;
  CacheBuffer* buffer = cache_buffer_of(owner_of(t)->buffer);
  return buffer != nullptr ? buffer->find(t->data) : nullptr;
}

std::unique_lock<std::mutex> lock_cache_buffers() { return std::unique_lock<std::mutex>(g_live_mutex); }

void internal::visit_live_buffers(void (*visit)(CacheBuffer*, void*), void* argument) {
  const auto lock = lock_cache_buffers();
  for (CacheBuffer* buffer : g_live) visit(buffer, argument);
}

}  // namespace kvt::plugin
