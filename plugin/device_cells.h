// The contents of a cache tensor on a GPU. The CacheTensor keeps its addresses and its structures on the host; the cells lie here,
// and ranges of them are copied to the host's side and back when a host saves, restores or copies a cache.
//
// All memory is one buffer of the inner device, reached by ggml's own copies: nothing here knows which kind of GPU it is.
#ifndef KVT_PLUGIN_DEVICE_CELLS_H
#define KVT_PLUGIN_DEVICE_CELLS_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ggml_abi/host_ggml.h"

namespace kvt::plugin {

class CacheTensor;

// Memory of the inner device, zero at first. Copies wait until they are done.
class DeviceBlock {
 public:
  // nullptr if there is no memory.
  static std::unique_ptr<DeviceBlock> create(ggml_backend_buffer_type_t inner_type, size_t bytes);
  ~DeviceBlock();
  DeviceBlock(const DeviceBlock&) = delete;
  DeviceBlock& operator=(const DeviceBlock&) = delete;

  ggml_backend_buffer_t buffer() const { return buffer_; }
  char* base() const { return base_; }
  size_t bytes() const { return bytes_; }
  void read(size_t offset, size_t bytes, void* dst) const;
  void write(size_t offset, size_t bytes, const void* src);
  void clear();

 private:
  DeviceBlock(ggml_backend_buffer_t buffer, size_t bytes);

  ggml_backend_buffer_t buffer_;
  char* base_;
  size_t bytes_;
};

class DeviceCells {
 public:
  // For a tensor in state kPages. nullptr if there is no memory.
  static std::unique_ptr<DeviceCells> create(const CacheTensor& cache, ggml_backend_buffer_type_t inner_type);

  // Addresses on the device; the strides are the CacheTensor's.
  char* pages() const { return block_->base(); }
  uint16_t* first_rows() const { return address<uint16_t>(first_); }
  uint16_t* ring_rows() const { return address<uint16_t>(ring_); }    // [n_streams, n_heads, capacity, head_dim]
  int32_t* ring_cells() const { return address<int32_t>(ring_cells_); }  // [n_streams, capacity], -1 = none
  uint32_t* ring_next() const { return address<uint32_t>(ring_next_); }  // [n_streams], the slot that is written next
  size_t capacity() const { return capacity_; }
  const float* key_scale() const { return address<float>(conditioning_); }  // [n_heads, head_dim]
  const float* key_inverse_scale() const { return key_scale() + n_scales_; }
  // As those of KeyMeans. Kernels set them; the host's side has what was downloaded last.
  float* key_mean_units() const { return address<float>(conditioning_ + 2 * n_scales_ * sizeof(float)); }
  int8_t* key_means() const { return address<int8_t>(means_); }

  // Cells of the rows first_row .. first_row + n_rows - 1, and all exact rows: device -> host's side. Nothing may be computing.
  void download(CacheTensor* cache, int64_t first_row, int64_t n_rows) const;
  // The reverse, conditioning included.
  void upload(CacheTensor* cache, int64_t first_row, int64_t n_rows);
  void upload_conditioning(const CacheTensor& cache);
  void download_means(CacheTensor* cache) const;
  // As an empty cache.
  void zero(const CacheTensor& cache);

  std::vector<int32_t> read_ring_cells() const;
  // Tells which rings are equal: those of equal history have seen the same cells in the same order.
  uint64_t ring_history() const { return ring_history_; }
  // Rows were written to the cells that the tensor `index` names in step number `step`.
  void note_rows(const void* index, uint64_t step);

 private:
  template <typename T>
  T* address(size_t offset) const {
    return reinterpret_cast<T*>(block_->base() + offset);
  }
  template <typename Copy>
  void for_page_ranges(const CacheTensor& cache, int64_t first_row, int64_t n_rows, Copy copy) const;

  std::unique_ptr<DeviceBlock> block_;
  size_t first_ = 0, ring_ = 0, ring_cells_ = 0, ring_next_ = 0, conditioning_ = 0, means_ = 0;  // offsets; the pages come first
  size_t n_streams_ = 0, n_heads_ = 0, head_dim_ = 0, capacity_ = 0, n_scales_ = 0, n_units_ = 0;
  uint64_t ring_history_ = 0;
};

// The host's side of a range of cells, for as long as it lives: copied from the device at the beginning, and back at the end if
// it is for writing. Another one may be made meanwhile, and ends before: it sees what was written. Nothing happens for a cache in host
// memory.
class HostSide {
 public:
  enum class For { kReading, kWriting };
  HostSide(CacheTensor* cache, int64_t first_row, int64_t n_rows, For purpose);
  ~HostSide();
  HostSide(const HostSide&) = delete;
  HostSide& operator=(const HostSide&) = delete;

 private:
  CacheTensor* cache_;
  int64_t first_row_, n_rows_;
  For purpose_;
  HostSide* outer_;
};

}  // namespace kvt::plugin

#endif
