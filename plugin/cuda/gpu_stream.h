// Our stream on a GPU: what the plug-in needs of CUDA's runtime, and no more. Tests replace it (tests/emulated_gpu).
//
// Functions that return bool leave the reason of a failure in last_error().
#ifndef KVT_PLUGIN_GPU_STREAM_H
#define KVT_PLUGIN_GPU_STREAM_H

#include <cstddef>
#include <memory>
#include <string>

#include "kvturbo/kvturbo_cuda.h"

namespace kvt::plugin {

class GpuStream {
 public:
  // nullptr if there can be none.
  static std::unique_ptr<GpuStream> create(int gpu);
  ~GpuStream();
  GpuStream(const GpuStream&) = delete;
  GpuStream& operator=(const GpuStream&) = delete;

  kvt_cuda_stream handle() const;
  // To be called on each thread before it launches anything.
  bool make_current();

  // event: what an event of the inner backend holds.
  bool record(void* event);
  bool wait(void* event);
  bool synchronize();

  // To pinned memory, in the order of the stream: n_rows rows of row_bytes, dense at dst.
  bool copy_to_host(void* dst, const void* src, size_t src_stride, size_t row_bytes, size_t n_rows);

  // What is launched between begin_capture and end_capture becomes a graph, here and on streams that wait for events recorded
  // here. end_capture replaces the graph of before; if it fails there is none. launch_graph launches it once more.
  bool begin_capture();
  bool end_capture();
  bool has_graph() const;
  bool launch_graph();
  void drop_graph();

  std::string last_error() const;

 private:
  struct State;
  explicit GpuStream(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Host memory for copy_to_host. nullptr if there is none.
void* pinned_memory(size_t bytes);
void pinned_memory_free(void* memory);

}  // namespace kvt::plugin

#endif
