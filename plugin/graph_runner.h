// Computes the host's graphs on an inner backend, with the operations on a compressed cache done by us.
#ifndef KVT_PLUGIN_GRAPH_RUNNER_H
#define KVT_PLUGIN_GRAPH_RUNNER_H

#include <memory>

#include "ggml_abi/host_ggml.h"

namespace kvt::plugin {

class GraphRunner {
 public:
  GraphRunner();
  virtual ~GraphRunner();
  GraphRunner(const GraphRunner&) = delete;
  GraphRunner& operator=(const GraphRunner&) = delete;

  virtual enum ggml_status compute(ggml_cgraph* graph) = 0;
  // To be called after compute, whatever came of it.
  virtual void end_step(bool) noexcept {}
  virtual void set_n_threads(int n_threads) = 0;
  // Waits for what was computed and takes note of it. To be called before caches are read or changed otherwise than by graphs.
  virtual void finish() = 0;
};

// finish() of all runners of the process.
void finish_all_graphs();

// Says why a graph cannot be computed; the value is for the host.
enum ggml_status no_memory_for_cache();
enum ggml_status no_memory_for_working_space();

// On the CPU backend: one inner graph for each of the host's.
std::unique_ptr<GraphRunner> make_cpu_runner(ggml_backend_dev_t inner_device, ggml_backend_t inner);

// A function that the inner device's registry offers by name; nullptr if it does not.
template <typename Function>
Function inner_proc(ggml_backend_dev_t inner_device, const char* name) {
  ggml_backend_reg_t reg = inner_device->reg;
  if (reg == nullptr || reg->iface.get_proc_address == nullptr) return nullptr;
  return reinterpret_cast<Function>(reg->iface.get_proc_address(reg, name));
}

}  // namespace kvt::plugin

#endif
