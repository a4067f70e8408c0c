// A GPU for tests on machines without one: the host's CPU device takes its part, memory is host memory, and whatever is launched is
// done at once. With emulated_kernels.cc it makes a plug-in (ggml-kvturbo-emulated) whose GPU code runs anywhere.
#include <cstdlib>
#include <cstring>

#include "cuda/gpu_stream.h"
#include "gpu_support.h"

namespace kvt::plugin {

struct GpuStream::State {};

std::unique_ptr<GpuStream> GpuStream::create(int) { return std::unique_ptr<GpuStream>(new GpuStream(std::make_unique<State>())); }
GpuStream::GpuStream(std::unique_ptr<State> state) : state_(std::move(state)) {}
GpuStream::~GpuStream() = default;

kvt_cuda_stream GpuStream::handle() const { return nullptr; }
bool GpuStream::make_current() { return true; }
bool GpuStream::record(void*) { return true; }
bool GpuStream::wait(void*) { return true; }
bool GpuStream::synchronize() { return true; }

bool GpuStream::copy_to_host(void* dst, const void* src, size_t src_stride, size_t row_bytes, size_t n_rows) {
  for (size_t i = 0; i < n_rows; ++i) {
    std::memcpy(static_cast<char*>(dst) + i * row_bytes, static_cast<const char*>(src) + i * src_stride, row_bytes);
  }
  return true;
}

bool GpuStream::begin_capture() { return false; }
bool GpuStream::end_capture() { return false; }
bool GpuStream::has_graph() const { return false; }
bool GpuStream::launch_graph() { return false; }
void GpuStream::drop_graph() {}
std::string GpuStream::last_error() const { return "an emulated stream captures nothing"; }

void* pinned_memory(size_t bytes) { return std::malloc(bytes); }
void pinned_memory_free(void* memory) { std::free(memory); }

const char* gpu_registry_name() { return "CPU"; }
std::string gpu_problem(int) { return ""; }

}  // namespace kvt::plugin
