// Writes a copy of a GGUF model with f16 weights: plugin_dequantize <ggml folder> <model> <copy>.
//
// The plumbing test needs it. With quantised weights ggml rounds activations to 8 bits, and any difference in the order of a
// sum grows to a KLD of 4e-3 between stock and itself (-fa on and off). With f16 weights stock agrees with itself to 1e-5, so
// that an error of ours shows.
#include <cstring>
#include <vector>

#include "plugin_ggml.h"

namespace {

// The tensor with f16 (vectors: f32) data in memory that lives until the program ends.
ggml_tensor* dequantized(const kvt_test::Ggml& g, ggml_context* ctx, const ggml_tensor* t) {
  const auto n = static_cast<size_t>(g.ggml_nelements(t));
  std::vector<float> values(n);
  if (t->type == GGML_TYPE_F32) {
    std::memcpy(values.data(), t->data, n * sizeof(float));
  } else {
    g.ggml_get_type_traits(t->type)->to_float(t->data, values.data(), static_cast<int64_t>(n));
  }
  const bool is_vector = g.ggml_n_dims(t) == 1;
  ggml_tensor* copy = g.ggml_new_tensor(ctx, is_vector ? GGML_TYPE_F32 : GGML_TYPE_F16, g.ggml_n_dims(t), t->ne);
  g.ggml_set_name(copy, t->name);
  copy->data = std::malloc(g.ggml_nbytes(copy));
  if (copy->data == nullptr) std::exit(1);
  if (is_vector) {
    std::memcpy(copy->data, values.data(), n * sizeof(float));
  } else {
    auto* halves = static_cast<ggml_fp16_t*>(copy->data);
    for (size_t i = 0; i < n; ++i) halves[i] = g.ggml_fp32_to_fp16(values[i]);
  }
  return copy;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::printf("usage: plugin_dequantize <ggml folder> <model.gguf> <copy.gguf>\n");
    return 1;
  }
  const kvt_test::Ggml g(argv[1]);
  ggml_context* weights = nullptr;
  gguf_init_params params{};
  params.ctx = &weights;
  gguf_context* model = g.gguf_init_from_file(argv[2], params);
  if (model == nullptr) return 1;
  ggml_init_params init{};
  init.mem_size = 16 << 20;
  init.no_alloc = true;
  ggml_context* ctx = g.ggml_init(init);
  gguf_context* copy = g.gguf_init_empty();
  g.gguf_set_kv(copy, model);
  g.gguf_set_val_u32(copy, "general.file_type", 1);  // mostly f16
  for (ggml_tensor* t = g.ggml_get_first_tensor(weights); t != nullptr; t = g.ggml_get_next_tensor(weights, t)) {
    if (std::strcmp(t->name, "GGUF tensor data binary blob") == 0) continue;  // gguf's own tensor that holds the bytes of all
    g.gguf_add_tensor(copy, dequantized(g, ctx, t));
  }
  return g.gguf_write_to_file(copy, argv[3], false) ? 0 : 1;
}
