// GpuStream by CUDA's runtime, which is linked in and works without a driver.
#include <cuda_runtime.h>

#include "gpu_stream.h"
#include "gpu_support.h"

namespace kvt::plugin {

struct GpuStream::State {
  int gpu = 0;
  cudaStream_t stream = nullptr;
  cudaGraphExec_t graph = nullptr;
  cudaError_t error = cudaSuccess;

  bool check(cudaError_t result) {
    if (result == cudaSuccess) return true;
    error = result;
    (void)cudaGetLastError();  // not to be found by others
    return false;
  }
};

std::unique_ptr<GpuStream> GpuStream::create(int gpu) {
  auto state = std::make_unique<State>();
  state->gpu = gpu;
  if (!state->check(cudaSetDevice(gpu)) || !state->check(cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking))) {
    return nullptr;
  }
  return std::unique_ptr<GpuStream>(new GpuStream(std::move(state)));
}

GpuStream::GpuStream(std::unique_ptr<State> state) : state_(std::move(state)) {}

GpuStream::~GpuStream() {
  drop_graph();
  cudaStreamDestroy(state_->stream);
}

kvt_cuda_stream GpuStream::handle() const { return state_->stream; }
bool GpuStream::make_current() { return state_->check(cudaSetDevice(state_->gpu)); }
bool GpuStream::record(void* event) { return state_->check(cudaEventRecord(static_cast<cudaEvent_t>(event), state_->stream)); }
bool GpuStream::wait(void* event) { return state_->check(cudaStreamWaitEvent(state_->stream, static_cast<cudaEvent_t>(event), 0)); }
bool GpuStream::synchronize() { return state_->check(cudaStreamSynchronize(state_->stream)); }

bool GpuStream::copy_to_host(void* dst, const void* src, size_t src_stride, size_t row_bytes, size_t n_rows) {
  if (row_bytes == 0 || n_rows == 0) return true;
  if (n_rows == 1 || src_stride == row_bytes) {
    return state_->check(cudaMemcpyAsync(dst, src, row_bytes * n_rows, cudaMemcpyDeviceToHost, state_->stream));
  }
  return state_->check(
      cudaMemcpy2DAsync(dst, row_bytes, src, src_stride, row_bytes, n_rows, cudaMemcpyDeviceToHost, state_->stream));
}

bool GpuStream::begin_capture() { return state_->check(cudaStreamBeginCapture(state_->stream, cudaStreamCaptureModeRelaxed)); }

bool GpuStream::end_capture() {
  cudaGraph_t captured = nullptr;
  if (!state_->check(cudaStreamEndCapture(state_->stream, &captured)) || captured == nullptr) {
    drop_graph();
    return false;
  }
  // The next graph of a sequence that grows differs in sizes only: to change the old one is quicker than to make another.
  cudaGraphExecUpdateResultInfo result{};
  if (state_->graph == nullptr || cudaGraphExecUpdate(state_->graph, captured, &result) != cudaSuccess) {
    (void)cudaGetLastError();
    drop_graph();
    if (!state_->check(cudaGraphInstantiate(&state_->graph, captured, 0))) state_->graph = nullptr;
  }
  cudaGraphDestroy(captured);
  return state_->graph != nullptr;
}

bool GpuStream::has_graph() const { return state_->graph != nullptr; }
bool GpuStream::launch_graph() { return state_->check(cudaGraphLaunch(state_->graph, state_->stream)); }

void GpuStream::drop_graph() {
  if (state_->graph != nullptr) cudaGraphExecDestroy(state_->graph);
  state_->graph = nullptr;
}

std::string GpuStream::last_error() const { return cudaGetErrorString(state_->error); }

void* pinned_memory(size_t bytes) {
  void* memory = nullptr;
  if (cudaMallocHost(&memory, bytes) == cudaSuccess) return memory;
  (void)cudaGetLastError();
  return nullptr;
}

void pinned_memory_free(void* memory) { cudaFreeHost(memory); }

// ---- gpu_support.h: what only the runtime knows

const char* gpu_registry_name() { return "CUDA"; }

std::string gpu_problem(int gpu) {
  int n_gpus = 0;
  const cudaError_t found = cudaGetDeviceCount(&n_gpus);
  if (found == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
    return "the NVIDIA driver supports CUDA " + version(driver) + " and this build needs " + version(runtime) +
           "; update the driver, or use KVTURBO_DEVICE=cpu";
  }
  if (found != cudaSuccess) return std::string("the CUDA runtime says: ") + cudaGetErrorString(found);
  if (gpu >= n_gpus) return "the CUDA runtime sees " + std::to_string(n_gpus) + " GPUs only; see CUDA_VISIBLE_DEVICES";
  cudaDeviceProp properties{};
  int before = 0;
  cudaGetDevice(&before);
  if (cudaGetDeviceProperties(&properties, gpu) != cudaSuccess || cudaSetDevice(gpu) != cudaSuccess) {
    return std::string("the CUDA runtime says: ") + cudaGetErrorString(cudaGetLastError());
  }
  const kvt_status status = kvt_cuda_device_status();
  cudaSetDevice(before);
  if (status == KVT_OK) return "";
  if (status == KVT_ERROR_CUDA_DEVICE) {
    return std::string(properties.name) + " has compute capability " + std::to_string(properties.major) + "." +
           std::to_string(properties.minor) + ", and the kernels of this build need 8.0 or more; use KVTURBO_DEVICE=cpu, or a build with "
           "KVTURBO_CUDA_ARCHITECTURES for this GPU";
  }
  return std::string(kvt_status_string(status)) + ": " + cudaGetErrorString(cudaGetLastError());
}

}  // namespace kvt::plugin
