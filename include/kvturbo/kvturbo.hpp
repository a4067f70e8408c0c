// C++ wrapper of kvturbo.h: ownership, bounds and exceptions, nothing else. Header only, C++20.
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
  Codec(kvt_codec_id id, uint32_t head_dim_k, uint32_t head_dim_v) : head_dim_{head_dim_k, head_dim_v} {
    check(kvt_codec_create(id, head_dim_k, head_dim_v, &codec_));
  }
  Codec(const std::string& name, uint32_t head_dim_k, uint32_t head_dim_v) : Codec(id_of(name), head_dim_k, head_dim_v) {}
  Codec(Codec&& other) noexcept
      : head_dim_{other.head_dim_[0], other.head_dim_[1]}, codec_(std::exchange(other.codec_, nullptr)) {}
  Codec& operator=(Codec&& other) noexcept {
    std::swap(codec_, other.codec_);
    std::swap(head_dim_, other.head_dim_);
    return *this;
  }
  ~Codec() { kvt_codec_destroy(codec_); }

  const kvt_codec* get() const noexcept { return codec_; }
  uint32_t head_dim(kvt_side side) const noexcept { return head_dim_[side]; }
  size_t page_bytes(kvt_side side) const noexcept { return kvt_page_bytes(codec_, side); }
  const char* isa() const noexcept { return kvt_codec_isa(codec_); }

 private:
  static kvt_codec_id id_of(const std::string& name) {
    kvt_codec_id id;
    check(kvt_codec_from_name(name.c_str(), &id));
    return id;
  }

  uint32_t head_dim_[2];
  kvt_codec* codec_ = nullptr;
};

// Pages of one side for n_heads kv heads and up to n_cells cells, one stream: [head][page]. The simplest cache that kvt_attention reads.
// The codec must outlive it.
class PageArray {
 public:
  PageArray(const Codec& codec, kvt_side side, uint32_t n_heads, size_t n_cells)
      : codec_(&codec), side_(side), n_heads_(n_heads), n_cells_(n_cells), page_stride_(codec.page_bytes(side)),
        head_stride_((n_cells + KVT_PAGE_TOKENS - 1) / KVT_PAGE_TOKENS * page_stride_), bytes_(n_heads * head_stride_) {}

  // rows: [cells.size(), head_dim], contiguous, of one kv head. Throws, and nothing has changed, for a head, a cell or a number of
  // floats that does not fit, and for rows that are not finite.
  void encode(uint32_t head, std::span<const float> rows, std::span<const int64_t> cells) {
    const uint32_t head_dim = codec_->head_dim(side_);
    if (rows.size() != cells.size() * head_dim) throw Error(KVT_ERROR_INVALID_ARGUMENT);
    for (const int64_t cell : cells) check_cells(head, cell < 0 ? n_cells_ : static_cast<size_t>(cell), 1);
    check(kvt_encode(codec_->get(), side_, rows.data(), head_dim, cells.size(), cells.data(), bytes_.data() + head * head_stride_,
                     page_stride_));
  }

  // The cells first .. first + n - 1 of one kv head: [n, head_dim].
  std::vector<float> decode(uint32_t head, size_t first, size_t n) const {
    check_cells(head, first, n);
    const uint32_t head_dim = codec_->head_dim(side_);
    std::vector<float> rows(n * head_dim);
    check(kvt_decode(codec_->get(), side_, bytes_.data() + head * head_stride_, page_stride_, first, n, rows.data(), head_dim));
    return rows;
  }

  uint32_t n_heads() const noexcept { return n_heads_; }
  size_t n_cells() const noexcept { return n_cells_; }
  const void* data() const noexcept { return bytes_.data(); }
  size_t page_stride() const noexcept { return page_stride_; }
  size_t head_stride() const noexcept { return head_stride_; }
  size_t size_bytes() const noexcept { return bytes_.size(); }

 private:
  void check_cells(uint32_t head, size_t first, size_t n) const {
    if (head >= n_heads_) throw Error(KVT_ERROR_INVALID_ARGUMENT);
    if (first > n_cells_ || n > n_cells_ - first) throw Error(KVT_ERROR_CELL_RANGE);
  }

  const Codec* codec_;
  kvt_side side_;
  uint32_t n_heads_;
  size_t n_cells_, page_stride_, head_stride_;
  std::vector<uint8_t> bytes_;
};

// The arguments for the cells 0 .. n_cells - 1 of one stream. q: [n_queries, n_heads, head_dim_k], out: [n_queries, n_heads,
// head_dim_v], both contiguous, n_heads a multiple of the kv heads; they give n_queries. What more kvt_attention offers (masks, exact
// rows, ...) is set on the result.
inline kvt_attention make_attention(const Codec& codec, const PageArray& keys, const PageArray& values, uint32_t n_cells, uint32_t n_heads,
                                    std::span<const float> q, std::span<float> out, float scale) {
  const size_t q_row = size_t{n_heads} * codec.head_dim(KVT_KEY), out_row = size_t{n_heads} * codec.head_dim(KVT_VALUE);
  const uint32_t n_kv_heads = keys.n_heads();
  if (n_kv_heads == 0 || values.n_heads() != n_kv_heads || n_heads == 0 || n_heads % n_kv_heads != 0 || q.size() % q_row != 0 ||
      out.size() != q.size() / q_row * out_row) {
    throw Error(KVT_ERROR_INVALID_ARGUMENT);
  }
  if (n_cells > keys.n_cells() || n_cells > values.n_cells()) throw Error(KVT_ERROR_CELL_RANGE);
  kvt_attention a{};
  a.struct_size = sizeof a;
  a.n_streams = 1;
  a.n_kv_heads = n_kv_heads;
  a.n_group = n_heads / n_kv_heads;
  a.n_queries = static_cast<uint32_t>(q.size() / q_row);
  a.n_cells = n_cells;
  a.k_pages = keys.data();
  a.k_page_stride = keys.page_stride();
  a.k_head_stride = keys.head_stride();
  a.v_pages = values.data();
  a.v_page_stride = values.page_stride();
  a.v_head_stride = values.head_stride();
  a.q = q.data();
  a.q_head_stride = codec.head_dim(KVT_KEY) * sizeof(float);
  a.q_query_stride = q_row * sizeof(float);
  a.out = out.data();
  a.out_head_stride = codec.head_dim(KVT_VALUE) * sizeof(float);
  a.out_query_stride = out_row * sizeof(float);
  a.scale = scale;
  return a;
}

// On the calling thread.
inline void attend(const Codec& codec, const kvt_attention& attention) { check(kvt_attend(codec.get(), &attention)); }

}  // namespace kvt

#endif
