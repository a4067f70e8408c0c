// Key conditioning of a cache on a GPU. It is learnt on the host (key_conditioner.h), from keys and queries that are copied there
// while a graph runs; a new estimate goes back to the device, and the kept keys are encoded anew.
//
// That is done when the graph has run, for all layers: so no layer waits for the host, and steps can be captured. Until then
// new keys are stored with the estimate before. Only where copies of all layers would take too much pinned memory, the graph stops at each layer
// and learns at once.
#ifndef KVT_PLUGIN_KEY_LEARNING_H
#define KVT_PLUGIN_KEY_LEARNING_H

#include <cstdint>
#include <string>
#include <vector>

#include "cache_tensor.h"
#include "gpu_stream.h"
#include "kvturbo/kvturbo_cuda.h"
#include "plan_memory.h"

namespace kvt::plugin {

class KeyLearning {
 public:
  // For a SET_ROWS of keys whose conditioning is being learnt. Nothing here looks at the host's nodes after the graph: it may have
  // made another graph in their place by then.
  KeyLearning(const ggml_tensor* set_rows, CacheTensor* keys);

  CacheTensor* keys() const { return keys_; }
  int64_t n_rows() const { return n_rows_; }
  bool is_at_once() const;

  // Queries that ask these keys, of the attention that follows; nullptr: none are known. Some are enough: evenly taken, the last one among
  // them.
  void set_queries(const ggml_tensor* q);

  size_t staging_bytes() const;
  void set_staging_offset(size_t offset) { staging_offset_ = offset; }
  bool copy_rows(GpuStream* stream, const PlanMemory& memory) const;
  bool copy_queries(GpuStream* stream, const PlanMemory& memory) const;

  // The copies are complete. First, on any thread: what needs the host only. Returns false if a row is outside of the cache.
  bool learn_from_batch(const PlanMemory& memory);
  // Then: the rest, and what is stored anew. Launches may go on when it returns; the staging memory is in use until then.
  bool finish(GpuStream* stream, PlanMemory* memory, std::string* error);

 private:
  size_t rows_bytes() const { return static_cast<size_t>(n_rows_ * keys_->n_values()) * sizeof(float); }
  size_t index_bytes() const { return static_cast<size_t>(n_rows_) * sizeof(int64_t); }
  bool read_places(const PlanMemory& memory);
  void add_queries(const PlanMemory& memory) const;
  bool is_due() const;
  bool encode(GpuStream* stream, int64_t n_rows, const void* rows, const void* numbers, kvt_cuda_index_type type, int64_t first_row,
              std::string* error) const;
  bool store_kept(size_t first, GpuStream* stream, PlanMemory* memory, std::string* error) const;

  CacheTensor* keys_;
  int64_t n_rows_;
  kvt_cuda_encode_args new_rows_;
  // Queries [n_streams][n_queries][n_heads][head_dim], as they are copied.
  const char* queries_ = nullptr;
  int64_t head_dim_ = 0, n_heads_ = 0, n_queries_ = 0, n_streams_ = 0;
  size_t query_stride_ = 0, head_stride_ = 0, stream_stride_ = 0;
  size_t staging_offset_ = 0;  // rows, their numbers, queries
  std::vector<int64_t> places_;
  bool is_learnt_ = false;  // by learn_from_batch
};

}  // namespace kvt::plugin

#endif
