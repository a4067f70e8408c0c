#include "wrapped_device.h"

#include <deque>
#include <string>

#include "cache_buffer.h"
#include "cache_buffer_type.h"
#include "codec_store.h"
#include "ggml_abi/buffer_type_table.h"
#include "startup_report.h"
#include "wrapped_backend.h"

namespace kvt::plugin {
namespace {

struct WrappedDevice {
  ggml_backend_dev_t inner = nullptr;
  int gpu = -1;
  ggml_backend_device object{};
  BufferTypeObject buffer_type;
  std::string name, description;
};

std::deque<WrappedDevice> g_devices;  // stay where they are: the host keeps their addresses
ggml_backend_reg g_registry{};

WrappedDevice* self(ggml_backend_dev_t device) { return static_cast<WrappedDevice*>(device->context); }

// ---- ggml_backend_device_i. `enum` in front of ggml_backend_dev_type: ggml has a function of that name.

const char* get_name(ggml_backend_dev_t device) { return self(device)->name.c_str(); }
const char* get_description(ggml_backend_dev_t device) { return self(device)->description.c_str(); }
enum ggml_backend_dev_type get_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }

void get_memory(ggml_backend_dev_t device, size_t* free, size_t* total) {
  self(device)->inner->iface.get_memory(self(device)->inner, free, total);
}

void get_props(ggml_backend_dev_t device, ggml_backend_dev_props* props) {
  // The inner device's capabilities hold for us: a missing mmap_support would switch memory mapping off for the whole model.
  self(device)->inner->iface.get_props(self(device)->inner, props);
  props->name = get_name(device);
  props->description = get_description(device);
  props->type = get_type(device);
}

ggml_backend_t init_backend(ggml_backend_dev_t device, const char* params) {
  return wrapped_backend_create(device, self(device)->inner, params);
}

ggml_backend_buffer_type_t get_buffer_type(ggml_backend_dev_t device) { return self(device)->buffer_type.get(); }

ggml_backend_buffer_type_t get_host_buffer_type(ggml_backend_dev_t device) {
  return self(device)->inner->iface.get_host_buffer_type(self(device)->inner);
}

ggml_backend_buffer_t buffer_from_host_ptr(ggml_backend_dev_t device, void* ptr, size_t size, size_t max_tensor_size) {
  return self(device)->inner->iface.buffer_from_host_ptr(self(device)->inner, ptr, size, max_tensor_size);
}

// A cache in memory that is not ours will not be compressed. The scheduler asks us about its operations nevertheless.
void notice_foreign_cache(const WrappedDevice& device, const ggml_tensor* op) {
  if (op->op != host().op.flash_attn_ext && op->op != host().op.set_rows) return;
  const ggml_tensor* source = op->op == host().op.set_rows ? op : op->src[1];
  if (source == nullptr) return;
  const ggml_tensor* owner = owner_of(source);
  if (!is_cache_tensor(owner) || owner->buffer == nullptr || device.buffer_type.is(owner->buffer->buft)) return;
  if (device.gpu >= 0) {
    if (cache_buffer_of(owner->buffer) == nullptr) report_layer_elsewhere(owner->name, host().ggml_backend_buffer_name(owner->buffer));
    return;
  }
  report_not_compressed(std::string("the host keeps it, or part of it, in ") + host().ggml_backend_buffer_name(owner->buffer) +
                        " memory instead of on device " + kDeviceName + "; leave out -nkvo, -ngl and --device");
}

bool supports_op(ggml_backend_dev_t device, const ggml_tensor* op) {
  const WrappedDevice& d = *self(device);
  // Weights: the loader asks with a source in our buffer type. By name, as fitting runs give cache tensors an empty buffer.
  for (int i = 0; d.gpu < 0 && i < GGML_MAX_SRC; ++i) {
    if (op->src[i] == nullptr) continue;
    const ggml_tensor* owner = owner_of(op->src[i]);
    if (owner->buffer != nullptr && d.buffer_type.is(owner->buffer->buft) && !parse_cache_name(owner->name, nullptr, nullptr))
      return false;
  }
  notice_foreign_cache(d, op);
  return d.inner->iface.supports_op(d.inner, op);
}

bool supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft) {
  return self(device)->buffer_type.is(buft) || self(device)->inner->iface.supports_buft(self(device)->inner, buft);
}

bool offload_op(ggml_backend_dev_t device, const ggml_tensor* op) {
  return self(device)->inner->iface.offload_op(self(device)->inner, op);
}

// Events are the inner device's own objects.
ggml_backend_event_t event_new(ggml_backend_dev_t device) { return self(device)->inner->iface.event_new(self(device)->inner); }
void event_free(ggml_backend_dev_t device, ggml_backend_event_t event) {
  self(device)->inner->iface.event_free(self(device)->inner, event);
}
void event_synchronize(ggml_backend_dev_t device, ggml_backend_event_t event) {
  self(device)->inner->iface.event_synchronize(self(device)->inner, event);
}

// ---- ggml_backend_reg_i

const char* registry_name(ggml_backend_reg_t) { return "KVTURBO"; }
size_t registry_device_count(ggml_backend_reg_t) { return g_devices.size(); }
ggml_backend_dev_t registry_device(ggml_backend_reg_t, size_t i) { return &g_devices[i].object; }
void* registry_proc_address(ggml_backend_reg_t, const char* name) { return wrapped_backend_proc_address(name); }

void make_device(const InnerDevice& inner) {
  WrappedDevice* device = &g_devices.emplace_back();
  device->inner = inner.device;
  device->gpu = inner.gpu;
  device->name = "KVTURBO" + std::to_string(g_devices.size() - 1);
  device->description =
      std::string(kvt_codec_name(cache_options().codec)) + " KV cache on " + inner.device->iface.get_name(inner.device);

  ggml_backend_device_i table{};
  table.get_name = get_name;
  table.get_description = get_description;
  table.get_memory = get_memory;
  table.get_type = get_type;
  table.get_props = get_props;
  table.init_backend = init_backend;
  table.get_buffer_type = get_buffer_type;
  table.supports_op = supports_op;
  table.supports_buft = supports_buft;
  const ggml_backend_device_i& has = inner.device->iface;
  if (has.get_host_buffer_type != nullptr) table.get_host_buffer_type = get_host_buffer_type;
  if (has.buffer_from_host_ptr != nullptr) table.buffer_from_host_ptr = buffer_from_host_ptr;
  if (has.offload_op != nullptr) table.offload_op = offload_op;
  if (has.event_new != nullptr) {
    table.event_new = event_new;
    table.event_free = event_free;
    table.event_synchronize = event_synchronize;
  }
  device->object = {table, &g_registry, device};
  cache_buffer_type_init(&device->buffer_type, &device->object);
}

}  // namespace

ggml_backend_dev_t inner_device(ggml_backend_dev_t device) { return self(device)->inner; }
int gpu_of(ggml_backend_dev_t device) { return self(device)->gpu; }

ggml_backend_reg_t wrapped_devices_make(const std::vector<InnerDevice>& inner) {
  if (!g_devices.empty()) return &g_registry;
  g_registry.api_version = host().api_version;
  g_registry.iface = {registry_name, registry_device_count, registry_device, registry_proc_address};
  for (const InnerDevice& device : inner) make_device(device);
  return &g_registry;
}

}  // namespace kvt::plugin
