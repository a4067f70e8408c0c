// Key conditioning of a cache on a GPU. It is learnt on the host (key_conditioner.h), from keys and queries that are copied there
// while a graph runs; a new estimate goes back to the device, and the kept keys are encoded anew.
//
// Two ways. At once: the graph waits for the copies, learns, and goes on with the new estimate; for steps in which learning is
// due. Later: the copies are taken note of after the graph; so a step of few tokens needs no wait and can be captured.
#ifndef KVT_PLUGIN_KEY_LEARNING_H
#define KVT_PLUGIN_KEY_LEARNING_H

#include "cache_tensor.h"
#include "gpu_stream.h"
#include "plan_memory.h"

namespace kvt::plugin {

class KeyLearning {
 public:
  // For a SET_ROWS of keys whose conditioning is being learnt.
  KeyLearning(const ggml_tensor* set_rows, CacheTensor* keys);

  CacheTensor* keys() const { return keys_; }
  bool is_at_once() const { return is_at_once_; }
  // Whether the decision between the ways still holds.
  bool is_up_to_date() const;

  // Queries that ask these keys, of the attention that follows.
  void set_queries(const ggml_tensor* q) { queries_ = q; }

  size_t staging_bytes() const;
  void set_staging_offset(size_t offset) { staging_offset_ = offset; }
  bool copy_rows(GpuStream* stream, const PlanMemory& memory) const;
  bool copy_queries(GpuStream* stream, const PlanMemory& memory) const;

  // The copies are complete: hands them to the conditioner. False if a row is outside of the cache.
  bool take_note(const PlanMemory& memory) const;
  // Learns if it is time to, and stores the kept keys with the new estimate. Waits. *error: if it returns false.
  bool learn(GpuStream* stream, PlanMemory* memory, std::string* error) const;

 private:
  size_t rows_bytes() const;
  size_t index_bytes() const;

  const ggml_tensor* set_rows_;
  const ggml_tensor* queries_ = nullptr;
  CacheTensor* keys_;
  bool is_at_once_;
  size_t staging_offset_ = 0;  // rows, their numbers, queries
};

}  // namespace kvt::plugin

#endif
