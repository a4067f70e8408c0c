#include "cache_tensor.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>

#include "cache_image.h"
#include "codec_store.h"
#include "graph_runner.h"
#include "no_throw.h"
#include "startup_report.h"
#include "state_rows.h"

namespace kvt::plugin {

size_t os_page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

bool parse_cache_name(const char* name, kvt_side* side, int* layer) {
  if (std::strncmp(name, "cache_", 6) != 0) return false;
  const char* end = name + std::strlen(name);
  const char* digits = end;
  while (digits > name && std::isdigit(static_cast<unsigned char>(digits[-1])) != 0) --digits;
  if (digits == end || digits - name < 6 + 3) return false;
  const char* mark = digits - 3;  // "k_l" or "v_l"
  if ((mark[0] != 'k' && mark[0] != 'v') || mark[1] != '_' || mark[2] != 'l') return false;
  if (side != nullptr) *side = mark[0] == 'k' ? KVT_KEY : KVT_VALUE;
  if (layer != nullptr) *layer = std::atoi(digits);
  return true;
}

CacheTensor::CacheTensor(const ggml_tensor* tensor, char* image, ggml_backend_buffer_type_t gpu_memory)
    : n_values_(tensor->ne[0]),
      n_cells_(tensor->ne[1]),
      n_streams_(tensor->ne[2] * tensor->ne[3]),
      row_bytes_(tensor->nb[1]),
      image_(image),
      gpu_memory_(gpu_memory) {
  parse_cache_name(tensor->name, &side_, &layer_);
}

CacheTensor::~CacheTensor() {
  state_drop(this);
  if (pages_ != nullptr) munmap(pages_, page_memory_bytes());
}

size_t CacheTensor::page_memory_bytes() const {
  return round_up(page_bytes_ * static_cast<size_t>(n_pages_ * (n_values_ / head_dim_) * n_streams_), os_page_bytes());
}

bool CacheTensor::open_image() {
  if (!is_image_open_) {
    is_image_open_ = mprotect(image_, round_up(image_bytes(), os_page_bytes()), PROT_READ | PROT_WRITE) == 0;
  }
  return is_image_open_;
}

void CacheTensor::close_image() {
  madvise(image_, round_up(image_bytes(), os_page_bytes()), MADV_DONTNEED);
  mprotect(image_, round_up(image_bytes(), os_page_bytes()), PROT_NONE);
  is_image_open_ = false;
}

void CacheTensor::drop_host_pages() { madvise(pages_, page_memory_bytes(), MADV_DONTNEED); }

void CacheTensor::drop_pages() {
  if (pages_ == nullptr) return;
  munmap(pages_, page_memory_bytes());
  pages_ = nullptr;
  conditioner_.reset();
  n_exact_ = 0;
  exact_.clear();
  recent_.reset();
  device_.reset();
}

bool CacheTensor::make_pages(const kvt_codec* codec, int64_t head_dim) {
  n_pages_ = (n_cells_ + KVT_PAGE_TOKENS - 1) / KVT_PAGE_TOKENS;
  page_bytes_ = kvt_page_bytes(codec, side_);
  const size_t bytes = page_bytes_ * static_cast<size_t>(n_pages_ * (n_values_ / head_dim) * n_streams_);
  void* pages = mmap(nullptr, round_up(bytes, os_page_bytes()), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) return false;
  codec_ = codec;
  head_dim_ = head_dim;
  pages_ = static_cast<char*>(pages);
  // Either everything that a codec needs is there, and what was set before is encoded, or the tensor is as it was.
  const bool is_done = completes([&] {
    const CacheOptions& options = cache_options();
    if (codec_id() != KVT_CODEC_F16) {
      if (side_ == KVT_KEY && options.is_conditioned) {
        conditioner_ = std::make_unique<KeyConditioner>(n_streams_, n_heads(), head_dim_, n_cells_);
      }
      n_exact_ = std::min<int64_t>(options.n_exact, n_cells_);
      exact_.assign(static_cast<size_t>(n_streams_ * n_values_ * n_exact_), ggml_fp16_t{0});
      if (options.n_recent > 0) {
        recent_ = std::make_unique<RecentRows>(static_cast<size_t>(n_streams_), static_cast<size_t>(n_heads()),
                                               static_cast<size_t>(head_dim_), static_cast<size_t>(options.n_recent));
      }
    }
    state_ = State::kPages;
    if (is_image_open_) image_set(this, 0, image_bytes(), image_);
  });
  if (!is_done) {
    drop_pages();
    state_ = State::kUndecided;
    return false;
  }
  if (is_on_gpu()) {
    device_ = DeviceCells::create(*this, gpu_memory_);
    if (device_ == nullptr) {
      drop_pages();
      state_ = State::kUndecided;
      return false;
    }
  }
  report_layout_changed();
  if (is_image_open_) {
    is_written_ = true;
    close_image();
    if (device_ != nullptr) {
      device_->upload(this, 0, n_rows());
      drop_host_pages();
    }
  }
  return true;
}

bool CacheTensor::make_rows(const std::string& why) {
  if (is_on_gpu()) {
    drop_pages();
    device_rows_ = DeviceBlock::create(gpu_memory_, image_bytes());
    if (device_rows_ == nullptr) return false;
    if (is_image_open_) {
      device_rows_->write(0, image_bytes(), image_);
      close_image();
    }
  } else {
    if (!open_image()) return false;
    drop_pages();
  }
  state_ = State::kRows;
  why_rows_ = why;
  report_layout_changed();
  return true;
}

kvt_codec_id CacheTensor::codec_id() const { return cache_options().codec_of_layer(layer_); }

void CacheTensor::set_written() {
  if (is_written_) return;
  is_written_ = true;
  report_layout_changed();
}

void CacheTensor::zero() {
  if (is_on_gpu()) finish_all_graphs();
  state_drop(this);
  if (pages_ != nullptr) drop_host_pages();
  if (conditioner_ != nullptr) conditioner_->reset();
  std::fill(exact_.begin(), exact_.end(), ggml_fp16_t{0});
  if (recent_ != nullptr) recent_->clear();
  probe_schedule_.reset();
  if (device_ != nullptr) device_->zero(*this);
  if (device_rows_ != nullptr) device_rows_->clear();
  if (is_image_open_) madvise(image_, round_up(image_bytes(), os_page_bytes()), MADV_DONTNEED);
}

size_t CacheTensor::storage_bytes() const {
  if (state_ == State::kPages) {
    return page_bytes_ * static_cast<size_t>(n_pages_ * (n_values_ / head_dim_) * n_streams_) + exact_.size() * sizeof(ggml_fp16_t) +
           (recent_ != nullptr ? recent_->stream_bytes() * static_cast<size_t>(n_streams_) : 0);
  }
  const size_t token_estimate = state_ == State::kUndecided ? largest_token_bytes(codec_id(), side_, n_values_) : 0;
  if (token_estimate == 0) return image_bytes();
  return token_estimate * static_cast<size_t>(n_streams_) * round_up(static_cast<size_t>(n_cells_), KVT_PAGE_TOKENS);
}

double CacheTensor::token_bytes() const {
  if (state_ != State::kPages) return static_cast<double>(row_bytes_);
  return static_cast<double>(page_bytes_) * static_cast<double>(n_values_ / head_dim_) / KVT_PAGE_TOKENS +
         (conditioner_ != nullptr ? conditioner_->means().cell_bytes() : 0);
}

size_t CacheTensor::fixed_bytes() const {
  return exact_.size() / static_cast<size_t>(n_streams_) * sizeof(ggml_fp16_t) +
         (recent_ != nullptr ? recent_->stream_bytes() : 0) + (conditioner_ != nullptr ? conditioner_->fixed_bytes() : 0);
}

}  // namespace kvt::plugin
