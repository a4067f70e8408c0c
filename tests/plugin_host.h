// A small host for tests of the plug-in: contexts with a cache of one layer, steps that write rows and attend.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "plugin_ggml.h"

namespace kvt_test {

inline const Ggml& ggml() {
  static const Ggml loaded(std::getenv("TEST_GGML_DIR"));
  return loaded;
}

inline constexpr int64_t kHeadDim = 64, kHeads = 2, kGroup = 2, kCells = 512;

// One context of a host: a cache of one layer and steps that write rows and attend.
class Host {
 public:
  explicit Host(ggml_backend_dev_t device) {
    const auto& g = ggml();
    backend_ = g.ggml_backend_dev_init(device, nullptr);
    cache_ctx_ = new_context();
    k_ = g.ggml_new_tensor_3d(cache_ctx_, GGML_TYPE_F16, kHeadDim * kHeads, kCells, 1);
    v_ = g.ggml_new_tensor_3d(cache_ctx_, GGML_TYPE_F16, kHeadDim * kHeads, kCells, 1);
    g.ggml_set_name(k_, "cache_k_l0");
    g.ggml_set_name(v_, "cache_v_l0");
    if (backend_ == nullptr) return;
    cache_ = g.ggml_backend_alloc_ctx_tensors_from_buft(cache_ctx_, g.ggml_backend_dev_buffer_type(device));
  }
  ~Host() {
    const auto& g = ggml();
    if (cache_ != nullptr) g.ggml_backend_buffer_free(cache_);
    g.ggml_free(cache_ctx_);
    if (backend_ != nullptr) g.ggml_backend_free(backend_);
  }
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  bool has_cache() const { return cache_ != nullptr; }
  ggml_backend_t backend() { return backend_; }

  void clear() { ggml().ggml_backend_buffer_clear(cache_, 0); }
  // The keys of all cells, as f16.
  std::vector<ggml_fp16_t> keys() const {
    std::vector<ggml_fp16_t> rows(static_cast<size_t>(ggml().ggml_nelements(k_)));
    ggml().ggml_backend_tensor_get(k_, rows.data(), 0, rows.size() * sizeof(ggml_fp16_t));
    return rows;
  }

  // Sets the keys of some cells, as a host that restores a state does.
  void set_keys(int64_t first, int64_t n, const std::vector<ggml_fp16_t>& of_all_cells) {
    const auto width = static_cast<size_t>(k_->ne[0]), at = static_cast<size_t>(first) * width;
    ggml().ggml_backend_tensor_set(k_, of_all_cells.data() + at, at * sizeof(ggml_fp16_t), static_cast<size_t>(n) * width * sizeof(ggml_fp16_t));
  }

  // Writes rows to cells first .. first + n - 1, and their queries attend all cells up to their own.
  // n_at_once: rows that one seed makes; n by default.
  ggml_status step(int64_t first, int64_t n, std::vector<float>* out, int64_t n_at_once = 0) {
    const auto& g = ggml();
    ggml_context* ctx = new_context();
    const int64_t n_used = first + n, n_seen = (n_used + 255) / 256 * 256;
    ggml_tensor* k_new = input(g.ggml_new_tensor_3d(ctx, GGML_TYPE_F32, k_->ne[0], n, 1));
    ggml_tensor* v_new = input(g.ggml_new_tensor_3d(ctx, GGML_TYPE_F32, v_->ne[0], n, 1));
    ggml_tensor* index = input(g.ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n));
    ggml_tensor* q = input(g.ggml_new_tensor_4d(ctx, GGML_TYPE_F32, kHeadDim, kHeads * kGroup, n, 1));
    ggml_tensor* mask = input(g.ggml_new_tensor_4d(ctx, GGML_TYPE_F16, n_seen, n, 1, 1));
    ggml_tensor* set_k = g.ggml_set_rows(ctx, k_, k_new, index);
    ggml_tensor* set_v = g.ggml_set_rows(ctx, v_, v_new, index);
    const auto heads = [&](ggml_tensor* t) {
      ggml_tensor* view = g.ggml_view_4d(ctx, t, kHeadDim, kHeads, n_seen, 1, kHeadDim * 2, t->nb[1], t->nb[2], 0);
      return g.ggml_permute(ctx, view, 0, 2, 1, 3);
    };
    ggml_tensor* attention = g.ggml_flash_attn_ext(ctx, g.ggml_permute(ctx, q, 0, 2, 1, 3), heads(k_), heads(v_), mask, 0.125f, 0, 0);
    g.ggml_set_output(attention);
    ggml_cgraph* graph = g.ggml_new_graph(ctx);
    for (ggml_tensor* t : {set_k, set_v, attention}) g.ggml_build_forward_expand(graph, t);
    ggml_gallocr_t allocator = g.ggml_gallocr_new(g.ggml_backend_get_default_buffer_type(backend_));
    ggml_status status = GGML_STATUS_ALLOC_FAILED;
    if (g.ggml_gallocr_alloc_graph(allocator, graph)) {
      for (const auto& [tensor, seed] : {std::pair{k_new, 1u}, std::pair{v_new, 2u}, std::pair{q, 3u}}) fill(tensor, seed, first, n, n_at_once);
      std::vector<int64_t> cells(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) cells[static_cast<size_t>(i)] = first + i;
      g.ggml_backend_tensor_set(index, cells.data(), 0, cells.size() * sizeof(int64_t));
      std::vector<ggml_fp16_t> seen(static_cast<size_t>(n * n_seen));
      for (size_t i = 0; i < seen.size(); ++i) {
        const auto query = static_cast<int64_t>(i) / n_seen, cell = static_cast<int64_t>(i) % n_seen;
        seen[i] = g.ggml_fp32_to_fp16(cell <= first + query ? 0.0f : -INFINITY);
      }
      g.ggml_backend_tensor_set(mask, seen.data(), 0, seen.size() * sizeof(ggml_fp16_t));
      status = g.ggml_backend_graph_compute(backend_, graph);
    }
    if (status == GGML_STATUS_SUCCESS) {
      out->resize(static_cast<size_t>(g.ggml_nelements(attention)));
      g.ggml_backend_tensor_get(attention, out->data(), 0, out->size() * sizeof(float));
    }
    g.ggml_gallocr_free(allocator);
    g.ggml_free(ctx);
    return status;
  }

 private:
  static ggml_context* new_context() {
    ggml_init_params params{};
    params.mem_size = 1 << 20;
    params.no_alloc = true;
    return ggml().ggml_init(params);
  }
  static ggml_tensor* input(ggml_tensor* t) {
    ggml().ggml_set_input(t);
    return t;
  }
  static void fill(ggml_tensor* t, uint32_t seed, int64_t first, int64_t n, int64_t n_at_once) {
    std::vector<float> v(static_cast<size_t>(ggml().ggml_nelements(t)));
    const size_t part = v.size() / static_cast<size_t>(n) * static_cast<size_t>(n_at_once > 0 ? n_at_once : n);
    for (size_t begin = 0; begin < v.size(); begin += part) {
      const auto row = static_cast<uint32_t>(first) + static_cast<uint32_t>(begin / (v.size() / static_cast<size_t>(n)));
      uint32_t state = seed * 2654435761u + row * 40503u;
      for (size_t i = begin; i < std::min(begin + part, v.size()); ++i) {
        state = state * 1664525u + 1013904223u;
        v[i] = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
      }
    }
    ggml().ggml_backend_tensor_set(t, v.data(), 0, v.size() * sizeof(float));
  }

  ggml_backend_t backend_ = nullptr;
  ggml_context* cache_ctx_ = nullptr;
  ggml_tensor *k_ = nullptr, *v_ = nullptr;
  ggml_backend_buffer_t cache_ = nullptr;
};

// Of two outputs, relative to the second.
inline double difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return 1;
  double error = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += std::pow(static_cast<double>(a[i] - b[i]), 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(error / size);
}

}  // namespace kvt_test
