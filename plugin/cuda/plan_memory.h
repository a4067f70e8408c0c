// Memory that the launches of a plan work with. It grows to what the largest plan needs; addresses are known once a plan is placed.
#ifndef KVT_PLUGIN_PLAN_MEMORY_H
#define KVT_PLUGIN_PLAN_MEMORY_H

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "device_cells.h"
#include "gpu_stream.h"

namespace kvt::plugin {

inline constexpr size_t kDeviceAlignment = 256;

// Device memory for one purpose. Growing replaces it: nothing may be using it then.
class DeviceArena {
 public:
  explicit DeviceArena(ggml_backend_buffer_type_t inner_type) : inner_type_(inner_type) {}
  bool has(size_t bytes) const { return bytes == 0 || (block_ != nullptr && block_->bytes() >= bytes); }
  bool require(size_t bytes) {
    if (has(bytes)) return true;
    block_.reset();
    block_ = DeviceBlock::create(inner_type_, bytes);
    return block_ != nullptr;
  }
  char* base() const { return block_ != nullptr ? block_->base() : nullptr; }
  ggml_backend_buffer_t buffer() const { return block_ != nullptr ? block_->buffer() : nullptr; }
  DeviceBlock* block() { return block_.get(); }

 private:
  ggml_backend_buffer_type_t inner_type_;
  std::unique_ptr<DeviceBlock> block_;
};

// Pinned host memory, likewise.
class PinnedArena {
 public:
  PinnedArena() = default;
  ~PinnedArena() { pinned_memory_free(base_); }
  PinnedArena(const PinnedArena&) = delete;
  PinnedArena& operator=(const PinnedArena&) = delete;
  bool has(size_t bytes) const { return bytes <= bytes_; }
  bool require(size_t bytes) {
    if (has(bytes)) return true;
    pinned_memory_free(base_);
    bytes_ = 0;
    base_ = static_cast<char*>(pinned_memory(bytes));
    if (base_ != nullptr) bytes_ = bytes;
    return base_ != nullptr;
  }
  char* base() const { return base_; }

 private:
  char* base_ = nullptr;
  size_t bytes_ = 0;
};

// Places in scratch memory. One that was released serves the next claim, as nodes run one after another.
class ScratchSlots {
 public:
  int claim(size_t bytes) {
    const auto free = std::find_if(slots_.begin(), slots_.end(), [](const Slot& s) { return !s.is_taken; });
    const auto slot = free != slots_.end() ? free : slots_.insert(slots_.end(), Slot{});
    slot->is_taken = true;
    slot->bytes = std::max(slot->bytes, (bytes + kDeviceAlignment - 1) / kDeviceAlignment * kDeviceAlignment);
    return static_cast<int>(slot - slots_.begin());
  }
  void release(int slot) { slots_[static_cast<size_t>(slot)].is_taken = false; }
  // Sizes are final once a plan is complete.
  size_t offset(int slot) const {
    size_t at = 0;
    for (int i = 0; i < slot; ++i) at += slots_[static_cast<size_t>(i)].bytes;
    return at;
  }
  size_t bytes() const { return offset(static_cast<int>(slots_.size())); }
  void clear() { slots_.clear(); }

 private:
  struct Slot {
    size_t bytes = 0;
    bool is_taken = false;
  };
  std::vector<Slot> slots_;
};

struct PlanMemory {
  explicit PlanMemory(ggml_backend_buffer_type_t inner_type)
      : scratch(inner_type), workspace(inner_type), prepared(inner_type), constants(inner_type), kept_rows(inner_type) {}
  DeviceArena scratch;    // f16 rows of one layer
  DeviceArena workspace;  // of attention
  DeviceArena prepared;   // steps, by mask
  DeviceArena constants;  // slopes, numbers of rows
  DeviceArena kept_rows;  // keys on their way back, while conditioning is learnt
  PinnedArena staging;    // keys and queries on their way to the host
};

}  // namespace kvt::plugin

#endif
