// One tensor of the host's KV cache: cache_k_l<n> or cache_v_l<n>, f16, [n_values, n_cells, n_streams] (ne order).
//
// The host sees an f16 tensor, the image, at addresses that are reserved but not accessible. Views of it map to (stream, cell,
// head, dim) by arithmetic, two tensors never overlap, and code that reads the cache as f16 behind our back faults at once
// instead of computing with garbage. What is really stored depends on the state:
//
//   kUndecided  the head dim is not known yet (the host's tensors do not tell it; the first graph does). Bytes that the host
//   sets
//               meanwhile are kept in the image, which is opened for that.
//   kPages      compressed: pages of the library, [stream][head][page], in memory of their own. The image stays closed.
//   kRows       not compressed: the image is ordinary f16 memory and the inner backend works on it directly.
//
// Memory is anonymous and committed when first written: an untouched page of either kind reads as zeros, which is an empty
// cell.
//
// On a GPU the cells lie in device memory (device_cells.h). Page addresses on the host remain, as the place for cells that are
// copied here for a while; graphs do not touch them. kRows: the f16 rows lie in device memory, and the image stays closed.
#ifndef KVT_PLUGIN_CACHE_TENSOR_H
#define KVT_PLUGIN_CACHE_TENSOR_H

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device_cells.h"
#include "ggml_abi/host_ggml.h"
#include "key_conditioner.h"
#include "kvturbo/kvturbo.h"
#include "probe_schedule.h"
#include "recent_rows.h"

namespace kvt::plugin {

// Size of a page of the operating system; the granularity of images and page memory.
size_t os_page_bytes();
size_t round_up(size_t n, size_t multiple);

// "cache_k_l7", "cache_<tag>v_l12": true, with side and layer. Pass nullptr for what is not wanted.
bool parse_cache_name(const char* name, kvt_side* side, int* layer);

// The tensor that owns the memory of t: t itself or what it is a view of.
inline const ggml_tensor* owner_of(const ggml_tensor* t) { return t->view_src != nullptr ? t->view_src : t; }

struct WaitingKeys;  // state_rows.h

class CacheTensor {
 public:
  enum class State { kUndecided, kPages, kRows };

  // image: os_page_bytes-aligned, reserved without access, at least round_up(ggml_nbytes(tensor), os_page_bytes()) bytes.
  // gpu_memory: where its contents go on a GPU; nullptr: they stay in host memory.
  CacheTensor(const ggml_tensor* tensor, char* image, ggml_backend_buffer_type_t gpu_memory);
  ~CacheTensor();
  CacheTensor(const CacheTensor&) = delete;
  CacheTensor& operator=(const CacheTensor&) = delete;

  // kUndecided -> kPages. n_values must be a multiple of head_dim, and codec must have head_dim on this side. What was set
  // before is encoded. Returns false if there is no memory.
  bool make_pages(const kvt_codec* codec, int64_t head_dim);
  // kUndecided, or kPages before anything was written -> kRows. why: a clause for the start-up line. False if there is no
  // memory.
  bool make_rows(const std::string& why);
  // To be called before pages are written.
  void set_written();
  bool is_written() const { return is_written_; }

  State state() const { return state_; }
  kvt_side side() const { return side_; }
  int layer() const { return layer_; }
  const std::string& why_rows() const { return why_rows_; }

  // ---- the image
  bool contains(const void* address) const { return address >= image_ && address < image_ + image_bytes(); }
  size_t offset_of(const void* address) const { return static_cast<size_t>(static_cast<const char*>(address) - image_); }
  int64_t n_values() const { return n_values_; }
  int64_t n_cells() const { return n_cells_; }  // of a stream
  int64_t n_streams() const { return n_streams_; }
  int64_t n_rows() const { return n_cells_ * n_streams_; }
  size_t row_bytes() const { return row_bytes_; }
  size_t image_bytes() const { return row_bytes_ * static_cast<size_t>(n_rows()); }
  // Plain access to the image, for kRows and kUndecided. Opening it is harmless if it is open.
  bool open_image();
  char* image() { return image_; }
  bool is_image_open() const { return is_image_open_; }

  // ---- on a GPU
  bool is_on_gpu() const { return gpu_memory_ != nullptr; }
  DeviceCells* device() { return device_.get(); }            // kPages; else nullptr
  const DeviceCells* device() const { return device_.get(); }
  DeviceBlock* device_rows() { return device_rows_.get(); }  // kRows; else nullptr
  HostSide*& host_side() { return host_side_; }              // the one that was made last
  char* host_pages() const { return pages_; }
  // Frees the host's copy of cells; their addresses remain.
  void drop_host_pages();

  // ---- the pages, for kPages
  const kvt_codec* codec() const { return codec_; }
  kvt_codec_id codec_id() const;  // in any state
  int64_t head_dim() const { return head_dim_; }
  int64_t n_heads() const { return n_values_ / head_dim_; }
  size_t page_stride() const { return page_bytes_; }
  size_t head_stride() const { return page_bytes_ * static_cast<size_t>(n_pages_); }
  size_t stream_stride() const { return head_stride() * static_cast<size_t>(n_heads()); }
  // Page 0 of a head.
  char* head_pages(int64_t stream, int64_t head) {
    return pages_ + static_cast<size_t>(stream) * stream_stride() + static_cast<size_t>(head) * head_stride();
  }

  // Keys of lossy codecs, unless switched off; else nullptr.
  KeyConditioner* conditioner() { return conditioner_.get(); }
  const KeyConditioner* conditioner() const { return conditioner_.get(); }
  // The first n_exact cells of each stream, in fp16 beside their codes, as the host gave them. 0 for f16.
  int64_t n_exact() const { return n_exact_; }
  ggml_fp16_t* exact_row(int64_t stream, int64_t head, int64_t cell) {
    return exact_.data() + ((stream * n_heads() + head) * n_exact_ + cell) * head_dim_;
  }
  size_t exact_head_stride() const { return static_cast<size_t>(n_exact_ * head_dim_) * sizeof(ggml_fp16_t); }
  size_t exact_stream_stride() const { return exact_head_stride() * static_cast<size_t>(n_heads()); }

  // The newest rows; nullptr for f16, or if switched off.
  RecentRows* recent() { return recent_.get(); }
  const RecentRows* recent() const { return recent_.get(); }
  // Rows written since the cache was empty; when to probe whether the codec fits them.
  ProbeSchedule& probe_schedule() { return probe_schedule_; }

  // Restored keys that are not stored yet (state_rows.h); nullptr if there are none.
  std::unique_ptr<WaitingKeys>& waiting_keys() { return waiting_keys_; }
  // Rows restored since the last graph, and whether any was set at all.
  int64_t& n_restored() { return n_restored_; }
  bool& was_set() { return was_set_; }

  // Everything becomes zero, and memory goes back to the system.
  void zero();

  // Bytes of memory when every cell is in use; an estimate while the state is kUndecided.
  size_t storage_bytes() const;
  // Bytes of memory for a cell of all heads.
  double token_bytes() const;
  // Bytes that a stream needs whatever its length: exact rows and conditioning.
  size_t fixed_bytes() const;

 private:
  size_t page_memory_bytes() const;
  void close_image();
  void drop_pages();

  kvt_side side_ = KVT_KEY;
  int layer_ = 0;
  int64_t n_values_, n_cells_, n_streams_;
  size_t row_bytes_;
  char* image_;
  ggml_backend_buffer_type_t gpu_memory_;
  bool is_image_open_ = false;
  std::atomic<bool> is_written_{false};  // other contexts' threads ask
  State state_ = State::kUndecided;
  std::string why_rows_;

  const kvt_codec* codec_ = nullptr;
  int64_t head_dim_ = 0;
  int64_t n_pages_ = 0;  // of a head of a stream
  size_t page_bytes_ = 0;
  char* pages_ = nullptr;  // [n_streams, n_heads, n_pages] pages
  std::unique_ptr<KeyConditioner> conditioner_;
  int64_t n_exact_ = 0;
  std::vector<ggml_fp16_t> exact_;  // [n_streams, n_heads, n_exact, head_dim]
  std::unique_ptr<RecentRows> recent_;
  ProbeSchedule probe_schedule_;
  std::unique_ptr<DeviceCells> device_;
  std::unique_ptr<DeviceBlock> device_rows_;
  HostSide* host_side_ = nullptr;
  std::unique_ptr<WaitingKeys> waiting_keys_;
  int64_t n_restored_ = 0;
  bool was_set_ = false;
};

}  // namespace kvt::plugin

#endif
