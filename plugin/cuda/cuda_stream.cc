// GpuStream by CUDA's runtime, which is linked in and works without a driver.
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <vector>

#include "gpu_stream.h"
#include "gpu_support.h"
#include "stage_pieces.h"

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

namespace {

struct Edges {
  std::vector<cudaGraphNode_t> from, to;
  std::vector<cudaGraphEdgeData> data;
};

bool get_edges(cudaGraph_t graph, Edges* edges) {
  size_t n = 0;
#if CUDART_VERSION >= 13000
  const auto get = cudaGraphGetEdges;
#else
  const auto get = cudaGraphGetEdges_v2;
#endif
  if (get(graph, nullptr, nullptr, nullptr, &n) != cudaSuccess) return false;
  edges->from.resize(n);
  edges->to.resize(n);
  edges->data.resize(n);
  return get(graph, edges->from.data(), edges->to.data(), edges->data.data(), &n) == cudaSuccess;
}

// The nodes in the only order that the edges allow; empty if they allow several.
std::vector<cudaGraphNode_t> order_of(cudaGraph_t graph, const Edges& edges) {
  size_t n_nodes = 0;
  if (cudaGraphGetNodes(graph, nullptr, &n_nodes) != cudaSuccess) return {};
  std::vector<cudaGraphNode_t> nodes(n_nodes), order;
  if (cudaGraphGetNodes(graph, nodes.data(), &n_nodes) != cudaSuccess) return {};
  std::map<cudaGraphNode_t, size_t> n_before;
  std::multimap<cudaGraphNode_t, cudaGraphNode_t> after;
  for (cudaGraphNode_t node : nodes) n_before[node] = 0;
  for (size_t i = 0; i < edges.from.size(); ++i) {
    ++n_before[edges.to[i]];
    after.emplace(edges.from[i], edges.to[i]);
  }
  std::vector<cudaGraphNode_t> ready;
  for (cudaGraphNode_t node : nodes) {
    if (n_before[node] == 0) ready.push_back(node);
  }
  while (ready.size() == 1) {
    const cudaGraphNode_t node = ready[0];
    order.push_back(node);
    ready.clear();
    const auto [first, last] = after.equal_range(node);
    for (auto it = first; it != last; ++it) {
      if (--n_before[it->second] == 0) ready.push_back(it->second);
    }
  }
  return order.size() == n_nodes ? order : std::vector<cudaGraphNode_t>{};
}

// Two streams that take turns wait for their own last kernel and for the other's, and the former says nothing new. CUDA launches a
// plain chain much faster than a graph whose nodes wait for several others, so what is said twice goes.
void make_chain(cudaGraph_t graph) {
  Edges edges;
  if (!get_edges(graph, &edges)) return;
  std::map<cudaGraphNode_t, size_t> place;
  for (cudaGraphNode_t node : order_of(graph, edges)) place.emplace(node, place.size());
  if (place.empty()) return;
  Edges redundant;
  for (size_t i = 0; i < edges.from.size(); ++i) {
    if (place[edges.to[i]] == place[edges.from[i]] + 1) continue;
    redundant.from.push_back(edges.from[i]);
    redundant.to.push_back(edges.to[i]);
    redundant.data.push_back(edges.data[i]);
  }
#if CUDART_VERSION >= 13000
  const auto remove = cudaGraphRemoveDependencies;
#else
  const auto remove = cudaGraphRemoveDependencies_v2;
#endif
  if (!redundant.from.empty()) {
    (void)remove(graph, redundant.from.data(), redundant.to.data(), redundant.data.data(), redundant.from.size());
  }
}

}  // namespace

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

bool GpuStream::stage(const StagedPieces& pieces) {
  launch_stage(pieces, state_->stream);
  return state_->check(cudaGetLastError());
}

bool GpuStream::add_one(uint32_t* number) {
  launch_add_one(number, state_->stream);
  return state_->check(cudaGetLastError());
}

bool GpuStream::begin_capture() { return state_->check(cudaStreamBeginCapture(state_->stream, cudaStreamCaptureModeRelaxed)); }

bool GpuStream::end_capture() {
  cudaGraph_t captured = nullptr;
  if (!state_->check(cudaStreamEndCapture(state_->stream, &captured)) || captured == nullptr) {
    drop_graph();
    return false;
  }
  make_chain(captured);
  (void)cudaGetLastError();  // it may have stayed as it was
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
