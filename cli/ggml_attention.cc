#include "ggml_attention.h"

#include "cli_error.h"

#ifdef KVT_HAVE_GGML_HEADERS

#include <dlfcn.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace kvt::cli {

namespace fs = std::filesystem;

// The functions of ggml that we call. Tensors are only handled through pointers, so a host with another tensor layout works
// too.
class GgmlLibrary {
 public:
#define KVT_GGML_FUNCTIONS(X)          \
  X(ggml_version)                      \
  X(ggml_log_set)                      \
  X(ggml_init)                         \
  X(ggml_free)                         \
  X(ggml_tensor_overhead)              \
  X(ggml_graph_overhead)               \
  X(ggml_row_size)                     \
  X(ggml_quantize_chunk)               \
  X(ggml_new_tensor_3d)                \
  X(ggml_permute)                      \
  X(ggml_flash_attn_ext)               \
  X(ggml_new_graph)                    \
  X(ggml_build_forward_expand)         \
  X(ggml_threadpool_params_default)    \
  X(ggml_backend_cpu_buffer_from_ptr)  \
  X(ggml_backend_buffer_free)          \
  X(ggml_backend_tensor_alloc)         \
  X(ggml_backend_view_init)            \
  X(ggml_backend_dev_init)             \
  X(ggml_backend_dev_backend_reg)      \
  X(ggml_backend_reg_get_proc_address) \
  X(ggml_backend_free)                 \
  X(ggml_backend_graph_compute)
#define KVT_DECLARE_FUNCTION(name) decltype(&::name) name = nullptr;
  KVT_GGML_FUNCTIONS(KVT_DECLARE_FUNCTION)
#undef KVT_DECLARE_FUNCTION

  ggml_backend_dev_t cpu_device = nullptr;
  ggml_backend_set_n_threads_t set_n_threads = nullptr;
  // Absent in a host that is built with OpenMP's threads in mind only; then each run starts its threads as the host likes.
  decltype(&ggml_threadpool_new) threadpool_new = nullptr;
  decltype(&ggml_threadpool_free) threadpool_free = nullptr;
  decltype(&ggml_backend_cpu_set_threadpool) set_threadpool = nullptr;
};

namespace {

// Chosen so that idle threads of ggml's pool go to sleep within a few milliseconds and leave the cores to the next candidate.
constexpr std::uint32_t kPollLevel = 1;

ggml_type ggml_type_of(GgmlType type) {
  switch (type) {
    case GgmlType::kQ8_0:
      return GGML_TYPE_Q8_0;
    case GgmlType::kQ4_0:
      return GGML_TYPE_Q4_0;
    case GgmlType::kF16:
      break;
  }
  return GGML_TYPE_F16;
}

template <class Function>
bool find_symbol(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

void ignore_log(ggml_log_level, const char*, void*) {}

CliError ggml_failure(const std::string& why) { return {kExitFailure, "the host's ggml", why, "leave it out with --no-ggml"}; }

// Keys or values: each distinct row is converted once, then copied.
void fill_cache(const GgmlLibrary& ggml, GgmlType type, GgmlLayout layout, const GgmlAttentionShape& shape, bool is_value,
                const RowSource& rows, std::size_t row_bytes, std::uint8_t* cache) {
  std::vector<std::pair<const float*, const std::uint8_t*>> seen;  // small: rows repeat
  for (unsigned token = 0; token < shape.n_tokens; ++token) {
    for (unsigned head = 0; head < shape.n_kv_heads; ++head) {
      const std::size_t place = layout == GgmlLayout::kHeadMajor ? std::size_t{head} * shape.n_tokens + token
                                                                 : std::size_t{token} * shape.n_kv_heads + head;
      std::uint8_t* const to = cache + place * row_bytes;
      const float* row = rows(is_value, token, head);
      const std::size_t index = static_cast<std::size_t>(row - rows(is_value, 0, 0)) / shape.head_dim;
      if (index >= seen.size()) seen.resize(index + 1);
      if (seen[index].first == row) {
        std::memcpy(to, seen[index].second, row_bytes);
        continue;
      }
      ggml.ggml_quantize_chunk(ggml_type_of(type), row, to, 0, 1, shape.head_dim, nullptr);
      seen[index] = {row, to};
    }
  }
}

}  // namespace

const char* ggml_type_label(GgmlType type) {
  switch (type) {
    case GgmlType::kQ8_0:
      return "q8_0";
    case GgmlType::kQ4_0:
      return "q4_0";
    case GgmlType::kF16:
      break;
  }
  return "f16";
}

std::shared_ptr<const GgmlLibrary> load_ggml(const fs::path& host_folder, std::string* why_not) {
  // The variable would bring plug-ins into this process.
  unsetenv("GGML_BACKEND_PATH");
  fs::path folder;
  for (const fs::path& candidate : {host_folder, host_folder / "../lib", host_folder / "../lib64"}) {
    if (fs::exists(candidate / "libggml-base.so") && fs::exists(candidate / "libggml.so")) {
      folder = candidate;
      break;
    }
  }
  if (folder.empty()) {
    *why_not = "no libggml-base.so and libggml.so beside the host's programs";
    return nullptr;
  }
  // In this order, so that each library finds the ones that it needs already loaded, wherever the folder has moved to.
  // Never closed: ggml's threads and OpenMP's outlive a close.
  void* const base = dlopen((folder / "libggml-base.so").c_str(), RTLD_NOW | RTLD_GLOBAL);
  const char* error = base == nullptr ? dlerror() : nullptr;
  if (fs::exists(folder / "libggml-cpu.so")) dlopen((folder / "libggml-cpu.so").c_str(), RTLD_NOW | RTLD_GLOBAL);
  void* const registry = error == nullptr ? dlopen((folder / "libggml.so").c_str(), RTLD_NOW | RTLD_GLOBAL) : nullptr;
  if (error == nullptr && registry == nullptr) error = dlerror();
  if (error != nullptr) {
    *why_not = error;
    return nullptr;
  }
  auto library = std::make_shared<GgmlLibrary>();
  GgmlLibrary& ggml = *library;
  const char* missing = nullptr;
#define KVT_LOAD_FUNCTION(name) \
  if (!find_symbol(base, #name, &ggml.name)) missing = #name;
  KVT_GGML_FUNCTIONS(KVT_LOAD_FUNCTION)
#undef KVT_LOAD_FUNCTION
  decltype(&::ggml_backend_dev_by_type) dev_by_type = nullptr;
  decltype(&::ggml_backend_load_all_from_path) load_all = nullptr;
  if (!find_symbol(registry, "ggml_backend_dev_by_type", &dev_by_type)) missing = "ggml_backend_dev_by_type";
  if (!find_symbol(registry, "ggml_backend_load_all_from_path", &load_all)) missing = "ggml_backend_load_all_from_path";
  if (missing != nullptr) {
    *why_not = std::string("its ggml lacks the function ") + missing;
    return nullptr;
  }
  ggml.ggml_log_set(ignore_log, nullptr);
  ggml.cpu_device = dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  if (ggml.cpu_device == nullptr) {
    // A host that loads its backends at run time, the CPU's among them.
    load_all(folder.c_str());
    ggml.cpu_device = dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  }
  if (ggml.cpu_device == nullptr) {
    *why_not = "its ggml has no CPU device";
    return nullptr;
  }
  const ggml_backend_reg_t reg = ggml.ggml_backend_dev_backend_reg(ggml.cpu_device);
  const auto find = [&](const char* name, auto* function) {
    *function =
        reinterpret_cast<std::remove_reference_t<decltype(*function)>>(ggml.ggml_backend_reg_get_proc_address(reg, name));
  };
  find("ggml_backend_set_n_threads", &ggml.set_n_threads);
  find("ggml_threadpool_new", &ggml.threadpool_new);
  find("ggml_threadpool_free", &ggml.threadpool_free);
  find("ggml_backend_cpu_set_threadpool", &ggml.set_threadpool);
  if (ggml.set_n_threads == nullptr) {
    *why_not = "its ggml cannot set the number of threads";
    return nullptr;
  }
  return library;
}

std::string ggml_library_version(const GgmlLibrary& library) { return library.ggml_version(); }

GgmlCache::GgmlCache(const GgmlLibrary& library, GgmlType type, GgmlLayout layout, const GgmlAttentionShape& shape,
                     const RowSource& rows, WorkerPool& pool)
    : type_(type),
      layout_(layout),
      row_bytes_(library.ggml_row_size(ggml_type_of(type), shape.head_dim)),
      keys_(row_bytes_ * shape.n_tokens * shape.n_kv_heads, pool),
      values_(row_bytes_ * shape.n_tokens * shape.n_kv_heads, pool) {
  fill_cache(library, type, layout, shape, false, rows, row_bytes_, keys_.data());
  fill_cache(library, type, layout, shape, true, rows, row_bytes_, values_.data());
}

struct GgmlAttention::Graph {
  const GgmlLibrary& ggml;
  ggml_context* context = nullptr;
  ggml_cgraph* graph = nullptr;
  ggml_backend_t backend = nullptr;
  ggml_threadpool_t pool = nullptr;
  std::vector<ggml_backend_buffer_t> buffers;

  explicit Graph(const GgmlLibrary& library) : ggml(library) {}
  ~Graph() {
    if (backend != nullptr) ggml.ggml_backend_free(backend);
    if (pool != nullptr) ggml.threadpool_free(pool);
    for (const ggml_backend_buffer_t buffer : buffers) ggml.ggml_backend_buffer_free(buffer);
    if (context != nullptr) ggml.ggml_free(context);
  }

  void place(ggml_tensor* tensor, const HugeBuffer& memory) {
    buffers.push_back(ggml.ggml_backend_cpu_buffer_from_ptr(memory.data(), memory.bytes()));
    if (ggml.ggml_backend_tensor_alloc(buffers.back(), tensor, memory.data()) != GGML_STATUS_SUCCESS) {
      throw ggml_failure("it refuses our memory");
    }
  }

  // [head_dim, n_rows, n_heads], as the operation takes it.
  ggml_tensor* new_view(ggml_type type, GgmlLayout layout, const GgmlAttentionShape& shape, unsigned n_heads, unsigned n_rows,
                        const HugeBuffer& memory) {
    if (layout == GgmlLayout::kHeadMajor) {
      ggml_tensor* tensor = ggml.ggml_new_tensor_3d(context, type, shape.head_dim, n_rows, n_heads);
      place(tensor, memory);
      return tensor;
    }
    ggml_tensor* tensor = ggml.ggml_new_tensor_3d(context, type, shape.head_dim, n_heads, n_rows);
    place(tensor, memory);
    ggml_tensor* view = ggml.ggml_permute(context, tensor, 0, 2, 1, 3);
    ggml.ggml_backend_view_init(view);
    return view;
  }
};

GgmlAttention::GgmlAttention(const GgmlLibrary& library, const GgmlCache& cache, const GgmlAttentionShape& shape,
                             const HugeBuffer& q, const HugeBuffer& out, unsigned n_threads)
    : graph_(std::make_unique<Graph>(library)) {
  Graph& g = *graph_;
  g.context = library.ggml_init({library.ggml_tensor_overhead() * 16 + library.ggml_graph_overhead(), nullptr, true});
  const ggml_type type = ggml_type_of(cache.type_);
  ggml_tensor* query =
      g.new_view(GGML_TYPE_F32, GgmlLayout::kTokenMajor, shape, shape.n_kv_heads * shape.n_group, shape.n_queries, q);
  ggml_tensor* key = g.new_view(type, cache.layout_, shape, shape.n_kv_heads, shape.n_tokens, cache.keys_);
  ggml_tensor* value = g.new_view(type, cache.layout_, shape, shape.n_kv_heads, shape.n_tokens, cache.values_);
  ggml_tensor* result = library.ggml_flash_attn_ext(g.context, query, key, value, nullptr,
                                                    1.0f / std::sqrt(static_cast<float>(shape.head_dim)), 0.0f, 0.0f);
  g.place(result, out);
  g.graph = library.ggml_new_graph(g.context);
  library.ggml_build_forward_expand(g.graph, result);
  g.backend = library.ggml_backend_dev_init(library.cpu_device, nullptr);
  if (g.backend == nullptr) throw ggml_failure("its CPU device does not start");
  library.set_n_threads(g.backend, static_cast<int>(n_threads));
  if (n_threads > 1 && library.threadpool_new != nullptr && library.threadpool_free != nullptr &&
      library.set_threadpool != nullptr) {
    ggml_threadpool_params params = library.ggml_threadpool_params_default(static_cast<int>(n_threads));
    params.poll = kPollLevel;
    g.pool = library.threadpool_new(&params);
    library.set_threadpool(g.backend, g.pool);
  }
}

GgmlAttention::~GgmlAttention() = default;

void GgmlAttention::run() {
  if (graph_->ggml.ggml_backend_graph_compute(graph_->backend, graph_->graph) != GGML_STATUS_SUCCESS) {
    throw ggml_failure("it failed to compute its flash attention");
  }
}

}  // namespace kvt::cli

#else

namespace kvt::cli {

class GgmlLibrary {};

struct GgmlAttention::Graph {};

const char* ggml_type_label(GgmlType) { return ""; }

std::shared_ptr<const GgmlLibrary> load_ggml(const std::filesystem::path&, std::string* why_not) {
  *why_not = "this kvturbo was built without ggml's headers (KVTURBO_GGML_SOURCE)";
  return nullptr;
}

// Without a library nobody gets here.
std::string ggml_library_version(const GgmlLibrary&) { return ""; }
GgmlCache::GgmlCache(const GgmlLibrary&, GgmlType type, GgmlLayout layout, const GgmlAttentionShape&, const RowSource&,
                     WorkerPool& pool)
    : type_(type), layout_(layout), row_bytes_(0), keys_(0, pool), values_(0, pool) {}
GgmlAttention::GgmlAttention(const GgmlLibrary&, const GgmlCache&, const GgmlAttentionShape&, const HugeBuffer&,
                             const HugeBuffer&, unsigned) {}
GgmlAttention::~GgmlAttention() = default;
void GgmlAttention::run() {}

}  // namespace kvt::cli

#endif
