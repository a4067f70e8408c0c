// Where the host comes in. ggml loads the file that GGML_BACKEND_PATH names and calls ggml_backend_init.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "codec_store.h"
#include "ggml_abi/host_ggml.h"
#include "gpu_support.h"
#include "metrics.h"
#include "no_throw.h"
#include "plugin_messages.h"
#include "plugin_options.h"
#include "startup_report.h"
#include "wrapped_device.h"

namespace kvt::plugin {
namespace {

bool is_gpu_type(ggml_backend_dev_t device) {
  const enum ggml_backend_dev_type type = device->iface.get_type(device);
  return type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
}

const char* name_of(ggml_backend_dev_t device) { return device->iface.get_name(device); }

// A GPU of the host, of whatever kind; nullptr if it has none.
ggml_backend_dev_t any_gpu() {
  for (size_t i = 0; i < host().ggml_backend_dev_count(); ++i) {
    if (is_gpu_type(host().ggml_backend_dev_get(i))) return host().ggml_backend_dev_get(i);
  }
  return nullptr;
}

// The host's registry of GPUs that this build has kernels for; nullptr if it has none.
ggml_backend_reg_t gpu_registry() {
  for (size_t i = 0; has_gpu_support() && i < host().ggml_backend_reg_count(); ++i) {
    ggml_backend_reg_t registry = host().ggml_backend_reg_get(i);
    if (std::strcmp(registry->iface.get_name(registry), gpu_registry_name()) == 0) return registry;
  }
  return nullptr;
}

std::string names_of_gpu_codecs() {
  std::string names;
  for (int i = 0; kvt_codec_name(static_cast<kvt_codec_id>(i)) != nullptr; ++i) {
    const auto codec = static_cast<kvt_codec_id>(i);
    if (is_gpu_codec(codec)) names += (names.empty() ? "" : ", ") + std::string(kvt_codec_name(codec));
  }
  return names;
}

bool check_codecs(const CacheOptions& options, std::string* error) {
  std::string missing;
  if (!is_gpu_codec(options.codec)) missing = "KVTURBO_CODEC=" + std::string(kvt_codec_name(options.codec));
  for (const auto& [layer, codec] : options.layer_codec) {
    if (missing.empty() && !is_gpu_codec(codec)) missing = "KVTURBO_LAYERS=" + std::to_string(layer) + ":" + kvt_codec_name(codec);
  }
  if (missing.empty()) return true;
  *error = missing + " has no GPU kernels; use " + names_of_gpu_codecs() + ", or KVTURBO_DEVICE=cpu with --device " + kDeviceName;
  return false;
}

// llama.cpp leaves out a GPU whose id equals that of an earlier one. So ours have to come before those that they wrap: these are
// registered anew, behind ours.
void put_before(ggml_backend_reg_t ours, ggml_backend_reg_t theirs) {
  // Taking a registry out closes its library, whose code goes on being used.
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(theirs->iface.get_name), &info) != 0 && info.dli_fname != nullptr) {
    dlopen(info.dli_fname, RTLD_NOW | RTLD_NODELETE);
  }
  host().ggml_backend_unload(theirs);
  // The devices only: the host would close our library if it found our registry known already.
  for (size_t i = 0; i < ours->iface.get_device_count(ours); ++i) host().ggml_backend_device_register(ours->iface.get_device(ours, i));
  host().ggml_backend_register(theirs);
}

ggml_backend_reg_t start(const PluginOptions& options, const std::string& names, const std::vector<InnerDevice>& devices) {
  report_configure(options, names);
  metrics_configure(options);
  std::atexit(metrics_at_exit);
  std::atexit(report_at_exit);  // runs before our static objects go
  return wrapped_devices_make(devices);
}

// Our devices over the host's GPUs; nullptr, and a line, if that cannot be. The host then runs as if we were not there.
ggml_backend_reg_t load_on_gpus(ggml_backend_reg_t registry, const PluginOptions& options) {
  std::vector<InnerDevice> usable;
  std::string names, error;
  if (host().api_version < 3) {
    say("the KV cache stays uncompressed: on GPUs this build needs a host with backend API 3, for example llama.cpp b11434");
    return nullptr;
  }
  for (size_t i = 0; i < registry->iface.get_device_count(registry); ++i) {
    ggml_backend_dev_t device = registry->iface.get_device(registry, i);
    const std::string problem = gpu_problem(static_cast<int>(i));
    if (!problem.empty()) {
      say("the KV cache stays uncompressed on " + std::string(name_of(device)) + ": " + problem);
      continue;
    }
    usable.push_back({device, static_cast<int>(i)});
    names += (names.empty() ? "" : ", ") + std::string(name_of(device));
  }
  if (usable.empty()) return nullptr;
  if (!check_codecs(options.cache, &error)) {
    say(error);
    std::exit(1);
  }
  ggml_backend_reg_t ours = start(options, names, usable);
  put_before(ours, registry);
  return ours;
}

ggml_backend_reg_t load_on_cpu(const PluginOptions& options) {
  return start(options, "CPU", {{host().ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), -1}});
}

ggml_backend_reg_t load(const void* address_in_host) {
  std::string error;
  if (!host_ggml_connect(address_in_host, &error)) {
    say("cannot load, the KV cache stays uncompressed: " + error);
    return nullptr;
  }
  PluginOptions options;
  if (!read_plugin_options(&options, &error)) {
    // The host would go on without us. To run with something else than was asked for is not ours to choose.
    say(error);
    std::exit(1);
  }
  codec_store_select(options.cache);

  ggml_backend_reg_t gpus = options.force_cpu ? nullptr : gpu_registry();
  if (gpus != nullptr && gpus->iface.get_device_count(gpus) > 0) return load_on_gpus(gpus, options);
  if (ggml_backend_dev_t gpu = any_gpu(); gpu != nullptr && !options.force_cpu) {
    say("the KV cache stays uncompressed: the host has the device " + std::string(name_of(gpu)) + " and this build compresses on " +
        (has_gpu_support() ? "NVIDIA GPUs and the CPU" : "the CPU") + " only; KVTURBO_DEVICE=cpu with --device " + kDeviceName +
        " runs the model on the CPU");
    return nullptr;
  }
  if (gpus != nullptr) say("the host has CUDA but no GPU that answers (see nvidia-smi): the model and its KV cache are on the CPU");
  return load_on_cpu(options);
}

}  // namespace
}  // namespace kvt::plugin

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
  static ggml_backend_reg_t registry = [](const void* address_in_host) {
    ggml_backend_reg_t loaded = nullptr;
    if (!kvt::plugin::completes([&] { loaded = kvt::plugin::load(address_in_host); })) kvt::plugin::say("cannot load: no memory");
    return loaded;
  }(__builtin_return_address(0));
  return registry;
}

// 0 would mean: not for this machine. The library has kernels for every one.
extern "C" __attribute__((visibility("default"))) int ggml_backend_score(void) { return 1; }
