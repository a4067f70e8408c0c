// A build without GPU kernels.
#include "gpu_support.h"

namespace kvt::plugin {

bool has_gpu_support() { return false; }
const char* gpu_registry_name() { return ""; }
std::string gpu_problem(int) { return "this build has no GPU kernels"; }
bool is_gpu_codec(kvt_codec_id) { return false; }
void gpu_prepare_process() {}
std::unique_ptr<GraphRunner> make_gpu_runner(int, ggml_backend_dev_t, ggml_backend_t) { return nullptr; }

}  // namespace kvt::plugin
