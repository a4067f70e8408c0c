// Where the host comes in. ggml loads the file that GGML_BACKEND_PATH names and calls ggml_backend_init.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "codec_store.h"
#include "ggml_abi/host_ggml.h"
#include "metrics.h"
#include "no_throw.h"
#include "plugin_messages.h"
#include "plugin_options.h"
#include "startup_report.h"
#include "wrapped_device.h"

namespace kvt::plugin {
namespace {

// A device that would compute faster than the CPU: the host would share the layers between it and us.
const char* name_of_other_gpu() {
  for (size_t i = 0; i < host().ggml_backend_dev_count(); ++i) {
    ggml_backend_dev_t device = host().ggml_backend_dev_get(i);
    const enum ggml_backend_dev_type type = device->iface.get_type(device);
    if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU) return device->iface.get_name(device);
  }
  return nullptr;
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
  if (const char* gpu = name_of_other_gpu(); gpu != nullptr && !options.force_cpu) {
    say("the KV cache stays uncompressed: the host has the device " + std::string(gpu) +
        " and this build compresses on the CPU only; KVTURBO_DEVICE=cpu with --device " + kDeviceName +
        " runs the model on the CPU");
    return nullptr;
  }
  codec_store_select(options.cache);
  report_configure(options);
  metrics_configure(options);
  std::atexit(metrics_at_exit);
  std::atexit(report_at_exit);  // runs before our static objects go
  return wrapped_device_register(host().ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
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
