// C++ wrapper of kvturbo.h: ownership and exceptions, nothing else. Header only.
#ifndef KVTURBO_HPP
#define KVTURBO_HPP

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kvturbo/kvturbo.h"

namespace kvt {

// A call failed; code() says how.
class Error : public std::runtime_error {
 public:
  explicit Error(kvt_status status) : std::runtime_error(std::string("kvturbo: ") + kvt_status_string(status)), status_(status) {}
  kvt_status code() const noexcept { return status_; }

 private:
  kvt_status status_;
};

inline void check(kvt_status status) {
  if (status != KVT_OK) throw Error(status);
}

// Owns a kvt_codec. Movable; may be used by any number of threads at once.
class Codec {
 public:
  Codec(kvt_codec_id id, uint32_t head_dim_k, uint32_t head_dim_v) { check(kvt_codec_create(id, head_dim_k, head_dim_v, &codec_)); }
  Codec(const std::string& name, uint32_t head_dim_k, uint32_t head_dim_v) {
    kvt_codec_id id;
    check(kvt_codec_from_name(name.c_str(), &id));
    check(kvt_codec_create(id, head_dim_k, head_dim_v, &codec_));
  }
  Codec(Codec&& other) noexcept : codec_(std::exchange(other.codec_, nullptr)) {}
  Codec& operator=(Codec&& other) noexcept {
    std::swap(codec_, other.codec_);
    return *this;
  }
  ~Codec() { kvt_codec_destroy(codec_); }

  const kvt_codec* get() const noexcept { return codec_; }
  size_t page_bytes(kvt_side side) const noexcept { return kvt_page_bytes(codec_, side); }
  const char* isa() const noexcept { return kvt_codec_isa(codec_); }

 private:
  kvt_codec* codec_ = nullptr;
};

// Pages of one side for n_heads kv heads and up to n_cells cells: [head][page]. The simplest cache that kvt_attention can read.
class PageArray {
 public:
  PageArray(const Codec& codec, kvt_side side, uint32_t n_heads, size_t n_cells)
      : codec_(&codec), side_(side), page_stride_(codec.page_bytes(side)),
        head_stride_((n_cells + KVT_PAGE_TOKENS - 1) / KVT_PAGE_TOKENS * page_stride_), bytes_(n_heads * head_stride_) {}

  // rows: [n, head_dim] contiguous, one for each cell. codec must outlive this object.
  void encode(uint32_t head, std::span<const float> rows, std::span<const int64_t> cells) {
    const size_t head_dim = cells.empty() ? 0 : rows.size() / cells.size();
    check(kvt_encode(codec_->get(), side_, rows.data(), head_dim, cells.size(), cells.data(), head_data(head), page_stride_));
  }
  // Cells first .. first + n - 1 as [n, head_dim] rows.
  std::vector<float> decode(uint32_t head, size_t first, size_t n, uint32_t head_dim) const {
    std::vector<float> rows(n * head_dim);
    check(kvt_decode(codec_->get(), side_, bytes_.data() + head * head_stride_, page_stride_, first, n, rows.data(), head_dim));
    return rows;
  }

  void* head_data(uint32_t head) noexcept { return bytes_.data() + head * head_stride_; }
  const void* data() const noexcept { return bytes_.data(); }
  size_t page_stride() const noexcept { return page_stride_; }
  size_t head_stride() const noexcept { return head_stride_; }
  size_t size_bytes() const noexcept { return bytes_.size(); }

 private:
  const Codec* codec_;
  kvt_side side_;
  size_t page_stride_, head_stride_;
  std::vector<uint8_t> bytes_;
};

inline void attend(const Codec& codec, const kvt_attention& attention) { check(kvt_attend(codec.get(), &attention)); }

}  // namespace kvt

#endif
