// kvturbo_cuda.h on the CPU library, for tests of the plug-in's GPU code: what the kernels do, without their speed.
#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "api/engine_encode.h"
#include "key_means.h"
#include "kvturbo/kvturbo_cuda.h"

namespace {

using kvt::plugin::KeyMeans;

const kvt_codec* codec_for(kvt_codec_id id, uint32_t head_dim_k, uint32_t head_dim_v) {
  static std::map<std::vector<uint32_t>, kvt_codec*> codecs;
  kvt_codec*& codec = codecs[{static_cast<uint32_t>(id), head_dim_k, head_dim_v}];
  if (codec == nullptr) kvt_codec_create(id, head_dim_k, head_dim_v, &codec);
  return codec;
}

template <typename T>
T* at(T* base, size_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<char*>(const_cast<std::remove_const_t<T>*>(base)) + bytes);
}

uint16_t* first_row(const kvt_cuda_exact_rows& e, size_t stream, size_t head, size_t cell, size_t d) {
  return at(e.first, stream * e.first_stream_stride + head * e.first_head_stride) + cell * d;
}
uint16_t* ring_row(const kvt_cuda_exact_rows& e, size_t stream, size_t head, size_t slot, size_t d) {
  return at(e.ring, stream * e.ring_stream_stride + head * e.ring_head_stride) + slot * d;
}

// The slot of a cell; -1 if it has none.
int slot_of(const kvt_cuda_exact_rows& e, size_t stream, int64_t cell) {
  for (uint32_t slot = 0; slot < e.capacity; ++slot) {
    if (e.ring_cells[stream * e.capacity + slot] == cell) return static_cast<int>(slot);
  }
  return -1;
}

// How many newer rows the ring has.
uint32_t n_newer(const kvt_cuda_exact_rows& e, size_t stream, int slot) {
  uint32_t n = 0;
  for (uint32_t s = (static_cast<uint32_t>(slot) + 1) % e.capacity; s != e.ring_next[stream]; s = (s + 1) % e.capacity) {
    n += e.ring_cells[stream * e.capacity + s] >= 0;
  }
  return n;
}

int64_t cell_of(const kvt_cuda_encode_args& a, size_t i) {
  const int64_t cell = a.cells_type == KVT_CUDA_I64 ? static_cast<const int64_t*>(a.cells)[i] : static_cast<const int32_t*>(a.cells)[i];
  return cell + a.cell_offset;
}

// Element j of the mean of a cell.
template <typename Args>
float mean_value(const Args& a, size_t stream, size_t head, size_t cell, size_t d, size_t j) {
  const size_t run = cell / a.mean_cells;
  const float unit = at(a.key_mean_unit, stream * a.key_mean_unit_stream_stride + head * a.key_mean_unit_head_stride)[run];
  const int8_t code = at(a.key_mean, stream * a.key_mean_stream_stride + head * a.key_mean_head_stride)[run * d + j];
  return unit < 0 ? 0.0f : unit * static_cast<float>(code);
}

// What the cells of the run before decode to, on average: of all of them (0) and of the newest (1).
struct Averages {
  float values[2][KVT_MAX_HEAD_DIM] = {};
  int64_t n[2] = {0, 0};
};

Averages averages_before(const kvt_cuda_encode_args& a, const float* key_scale, size_t stream, size_t head, int64_t run) {
  Averages averages;
  const size_t d = a.head_dim;
  const int64_t end = run * KeyMeans::kCells - KeyMeans::kUnsettledCells, n_first = a.exact != nullptr ? a.exact->n_first : 0;
  for (int64_t cell = std::max((run - 1) * KeyMeans::kCells, n_first); cell < end; ++cell) {
    float row[KVT_MAX_HEAD_DIM];
    kvt_decode(codec_for(a.codec, a.head_dim, a.head_dim), KVT_KEY,
               at(static_cast<const char*>(a.pages), stream * a.stream_stride + head * a.head_stride), a.page_stride,
               static_cast<size_t>(cell), 1, row, d);
    if (std::all_of(row, row + d, [](float x) { return x == 0; })) continue;
    for (const int which : {0, 1}) {
      if (which == 1 && cell < end - KeyMeans::kNewestCells) continue;
      for (size_t j = 0; j < d; ++j) averages.values[which][j] += row[j];
      ++averages.n[which];
    }
  }
  for (const int which : {0, 1}) {
    for (size_t j = 0; j < d; ++j) {
      averages.values[which][j] /= static_cast<float>(std::max<int64_t>(1, averages.n[which]));
      averages.values[which][j] = averages.values[which][j] * at(key_scale, head * a.key_scale_head_stride)[j] +
                                  mean_value(a, stream, head, static_cast<size_t>(end), d, j);
    }
  }
  return averages;
}

}  // namespace

kvt_status kvt_cuda_device_status(void) { return KVT_OK; }

kvt_status kvt_cuda_encode(const kvt_cuda_encode_args* args, kvt_cuda_stream) {
  const kvt_cuda_encode_args& a = *args;
  const size_t d = a.head_dim;
  const kvt_codec* codec = codec_for(a.codec, a.head_dim, a.head_dim);
  const kvt_cuda_exact_rows* exact = a.exact;
  if (a.struct_size != sizeof(a) || (exact != nullptr && exact->struct_size != sizeof(*exact)) ||
      (exact != nullptr && a.codec == KVT_CODEC_F16) || a.round_to_half != 1) {
    return KVT_ERROR_INVALID_ARGUMENT;
  }
  std::vector<int> slots(a.n_rows, -1);
  for (size_t i = 0; i < a.n_rows; ++i) {
    const int64_t cell = cell_of(a, i);
    if (cell < 0) continue;
    const int64_t per_stream = a.cells_per_stream > 0 ? a.cells_per_stream : INT64_MAX;
    const auto stream = static_cast<size_t>(cell / per_stream);
    const int64_t in_stream = cell % per_stream;
    int slot = -1;
    if (exact != nullptr && exact->capacity > 0) {
      slot = slot_of(*exact, stream, in_stream);
      if (a.exact_in_place == 0) {
        if (slot >= 0) exact->ring_cells[stream * exact->capacity + static_cast<size_t>(slot)] = -1;
        slot = static_cast<int>(exact->ring_next[stream]);
        exact->ring_cells[stream * exact->capacity + static_cast<size_t>(slot)] = static_cast<int32_t>(in_stream);
        exact->ring_next[stream] = (exact->ring_next[stream] + 1) % exact->capacity;
      }
    }
    for (size_t head = 0; head < a.n_kv_heads; ++head) {
      const size_t offset = i * a.src_row_stride + head * a.src_head_stride;
      const void* src = at(static_cast<const char*>(a.src), offset);
      const size_t element = a.src_type == KVT_CUDA_F32 ? sizeof(float) : sizeof(uint16_t);
      if (a.unchanged != nullptr && std::memcmp(src, at(static_cast<const char*>(a.unchanged), offset), d * element) == 0) continue;
      uint16_t half[KVT_MAX_HEAD_DIM];
      float row[KVT_MAX_HEAD_DIM];
      if (a.src_type == KVT_CUDA_F32) {
        kvt_internal::floats_to_halves(codec, static_cast<const float*>(src), d, half);
      } else {
        std::memcpy(half, src, d * sizeof(uint16_t));
      }
      if (exact != nullptr && in_stream < exact->n_first) {
        std::copy_n(half, d, first_row(*exact, stream, head, static_cast<size_t>(in_stream), d));
      }
      if (slot >= 0) std::copy_n(half, d, ring_row(*exact, stream, head, static_cast<size_t>(slot), d));
      kvt_internal::halves_to_floats(codec, half, d, row);
      for (size_t j = 0; a.key_mean != nullptr && j < d; ++j) {
        row[j] = (row[j] - mean_value(a, stream, head, static_cast<size_t>(in_stream), d, j)) *
                 at(a.key_inverse_scale, head * a.key_scale_head_stride)[j];
      }
      kvt_internal::encode_unchecked(codec, a.side, row, d, 1, &in_stream,
                                     at(static_cast<char*>(a.pages), stream * a.stream_stride + head * a.head_stride), a.page_stride);
    }
  }
  return KVT_OK;
}

kvt_status kvt_cuda_append(const kvt_cuda_encode_args* keys, const kvt_cuda_encode_args* values, kvt_cuda_stream stream) {
  if (keys->side != KVT_KEY || values->side != KVT_VALUE || keys->codec != values->codec || keys->n_rows != values->n_rows ||
      keys->n_kv_heads != values->n_kv_heads) {
    return KVT_ERROR_INVALID_ARGUMENT;
  }
  const kvt_status status = kvt_cuda_encode(keys, stream);
  return status == KVT_OK ? kvt_cuda_encode(values, stream) : status;
}

kvt_status kvt_cuda_begin_means(const kvt_cuda_encode_args* args, const float* key_scale, kvt_cuda_stream) {
  const kvt_cuda_encode_args& a = *args;
  if (a.struct_size != sizeof(a) || a.key_mean == nullptr || a.mean_cells != KeyMeans::kCells) return KVT_ERROR_INVALID_ARGUMENT;
  const size_t n_means = a.key_mean_unit_head_stride / sizeof(float);
  for (size_t i = 0; i < a.n_rows; ++i) {
    const int64_t number = cell_of(a, i);
    if (number < 0) continue;
    const int64_t per_stream = a.cells_per_stream > 0 ? a.cells_per_stream : INT64_MAX, cell = number % per_stream;
    const auto stream = static_cast<size_t>(number / per_stream);
    for (size_t head = 0; head < a.n_kv_heads; ++head) {
      int8_t* codes = at(a.key_mean, stream * a.key_mean_stream_stride + head * a.key_mean_head_stride);
      float* units = at(a.key_mean_unit, stream * a.key_mean_unit_stream_stride + head * a.key_mean_unit_head_stride);
      if (units[cell / KeyMeans::kCells] >= 0) continue;
      KeyMeans means(1, 1, a.head_dim, static_cast<int64_t>(n_means) * KeyMeans::kCells);
      means.load(codes, units);
      const int64_t run = cell / KeyMeans::kCells;
      const Averages before = run > 0 ? averages_before(a, key_scale, stream, head, run) : Averages{};
      means.predict(0, 0, cell, {before.values[0], before.values[1], before.n[0], before.n[1]});
      std::copy_n(means.all_codes(), n_means * a.head_dim, codes);
      std::copy_n(means.all_units(), n_means, units);
    }
  }
  return KVT_OK;
}

kvt_status kvt_cuda_decode(const kvt_cuda_decode_args* args, kvt_cuda_stream) {
  const kvt_cuda_decode_args& a = *args;
  const size_t d = a.head_dim;
  const kvt_codec* codec = codec_for(a.codec, a.head_dim, a.head_dim);
  if (a.struct_size != sizeof(a) || a.dst_type != KVT_CUDA_F16) return KVT_ERROR_INVALID_ARGUMENT;
  for (size_t stream = 0; stream < a.n_streams; ++stream) {
    for (size_t head = 0; head < a.n_kv_heads; ++head) {
      for (size_t i = 0; i < a.n_cells; ++i) {
        const size_t cell = a.first_cell + i;
        float row[KVT_MAX_HEAD_DIM];
        kvt_decode(codec, a.side, at(static_cast<const char*>(a.pages), stream * a.stream_stride + head * a.head_stride), a.page_stride,
                   cell, 1, row, d);
        for (size_t j = 0; a.key_mean != nullptr && j < d; ++j) {
          row[j] = row[j] * at(a.key_scale, head * a.key_scale_head_stride)[j] + mean_value(a, stream, head, cell, d, j);
        }
        uint16_t* to = static_cast<uint16_t*>(static_cast<void*>(
            at(static_cast<char*>(a.dst), stream * a.dst_stream_stride + head * a.dst_head_stride + i * a.dst_row_stride)));
        kvt_internal::floats_to_halves(codec, row, d, to);
        if (a.exact == nullptr) continue;
        const int slot = a.exact->capacity > 0 ? slot_of(*a.exact, stream, static_cast<int64_t>(cell)) : -1;
        if (cell < a.exact->n_first) {
          std::copy_n(first_row(*a.exact, stream, head, cell, d), d, to);
        } else if (slot >= 0 && n_newer(*a.exact, stream, slot) < a.recent_window) {
          std::copy_n(ring_row(*a.exact, stream, head, static_cast<size_t>(slot), d), d, to);
        }
      }
    }
  }
  return KVT_OK;
}

size_t kvt_cuda_step_bytes(const kvt_cuda_step_args* args) {
  return args->struct_size == sizeof(*args) && args->n_queries >= 1 && args->n_queries <= KVT_CUDA_MAX_QUERIES ? sizeof(*args) : 0;
}

kvt_status kvt_cuda_prepare_step(const kvt_cuda_step_args* args, void* step, size_t step_bytes, kvt_cuda_stream) {
  if (step_bytes < sizeof(*args)) return KVT_ERROR_DST_TOO_SMALL;
  std::memcpy(step, args, sizeof(*args));
  return KVT_OK;
}

size_t kvt_cuda_attend_workspace_bytes(const kvt_cuda_attention* args) {
  const uint32_t k = args->head_dim_k, v = args->head_dim_v;
  const bool has_kernel = (k == v && (k == 64 || k == 128 || k == 256)) || (k == 192 && v == 128);
  return has_kernel && args->n_queries <= KVT_CUDA_MAX_QUERIES && args->n_group <= KVT_CUDA_MAX_GROUP ? 256 : 0;
}

kvt_status kvt_cuda_attend(const kvt_cuda_attention* args, void*, size_t workspace_bytes, kvt_cuda_stream) {
  const kvt_cuda_attention& g = *args;
  kvt_cuda_step_args step{};
  if (g.step != nullptr) std::memcpy(&step, g.step, sizeof(step));
  const uint32_t n_first = g.exact_k != nullptr ? g.exact_k->n_first : 0, capacity = g.exact_k != nullptr ? g.exact_k->capacity : 0;
  if (g.struct_size != sizeof(g) || workspace_bytes < 256 || (g.step == nullptr) != (g.codec == KVT_CODEC_F16) ||
      (g.step != nullptr && (g.mask != nullptr || step.n_streams != g.n_streams || step.n_queries != g.n_queries ||
                             step.n_cells != g.max_cells || step.n_first != n_first || step.capacity != capacity ||
                             step.window != g.recent_window))) {
    return KVT_ERROR_INVALID_ARGUMENT;
  }
  kvt_attention a{};
  a.struct_size = sizeof(a);
  a.n_streams = g.n_streams;
  a.n_kv_heads = g.n_kv_heads;
  a.n_group = g.n_group;
  a.n_queries = g.n_queries;
  a.n_cells = g.max_cells;
  a.k_pages = g.k_pages;
  a.k_page_stride = g.k_page_stride;
  a.k_head_stride = g.k_head_stride;
  a.k_stream_stride = g.k_stream_stride;
  a.v_pages = g.v_pages;
  a.v_page_stride = g.v_page_stride;
  a.v_head_stride = g.v_head_stride;
  a.v_stream_stride = g.v_stream_stride;
  a.q = static_cast<const float*>(g.q);
  a.q_query_stride = g.q_query_stride;
  a.q_head_stride = g.q_head_stride;
  a.q_stream_stride = g.q_stream_stride;
  a.mask = g.step != nullptr ? step.mask : g.mask;
  a.mask_query_stride = g.step != nullptr ? step.mask_query_stride : g.mask_query_stride;
  a.mask_head_stride = g.step != nullptr ? 0 : g.mask_head_stride;
  a.mask_stream_stride = g.step != nullptr ? step.mask_stream_stride : g.mask_stream_stride;
  a.slopes = g.slopes;
  a.sinks = g.sinks;
  a.scale = g.scale;
  a.logit_softcap = g.logit_softcap;
  a.out = static_cast<float*>(g.out);
  a.out_query_stride = g.out_query_stride;
  a.out_head_stride = g.out_head_stride;
  a.out_stream_stride = g.out_stream_stride;
  a.key_scale = g.key_scale;
  a.key_scale_head_stride = g.key_scale_head_stride;
  a.key_mean = g.key_mean;
  a.key_mean_head_stride = g.key_mean_head_stride;
  a.key_mean_stream_stride = g.key_mean_stream_stride;
  a.key_mean_unit = g.key_mean_unit;
  a.key_mean_unit_head_stride = g.key_mean_unit_head_stride;
  a.key_mean_unit_stream_stride = g.key_mean_unit_stream_stride;
  a.mean_cells = g.mean_cells;
  if (n_first > 0) {
    a.n_exact = n_first;
    a.exact_k = g.exact_k->first;
    a.exact_k_head_stride = g.exact_k->first_head_stride;
    a.exact_k_stream_stride = g.exact_k->first_stream_stride;
    a.exact_v = g.exact_v->first;
    a.exact_v_head_stride = g.exact_v->first_head_stride;
    a.exact_v_stream_stride = g.exact_v->first_stream_stride;
  }
  // The rings as lists, oldest entry first. What they hold is taken from the step, the rows from this layer.
  std::vector<int32_t> cells;
  std::vector<uint16_t> k_rows, v_rows;
  for (size_t s = 0; s < g.n_streams && step.window > 0; ++s) {
    for (size_t e = 0; e < capacity; ++e) cells.push_back(step.ring_cells[s * capacity + (step.ring_next[s] + e) % capacity]);
    for (size_t head = 0; head < g.n_kv_heads; ++head) {
      for (size_t e = 0; e < capacity; ++e) {
        const size_t slot = (step.ring_next[s] + e) % capacity;
        const uint16_t *k = ring_row(*g.exact_k, s, head, slot, g.head_dim_k), *v = ring_row(*g.exact_v, s, head, slot, g.head_dim_v);
        k_rows.insert(k_rows.end(), k, k + g.head_dim_k);
        v_rows.insert(v_rows.end(), v, v + g.head_dim_v);
      }
    }
  }
  if (!cells.empty()) {
    a.n_recent = capacity;
    a.recent_window = step.window;
    a.recent_own = capacity - 1;
    a.recent_cells = cells.data();
    a.recent_cells_stream_stride = capacity * sizeof(int32_t);
    a.recent_k = k_rows.data();
    a.recent_k_head_stride = size_t{capacity} * g.head_dim_k * sizeof(uint16_t);
    a.recent_k_stream_stride = a.recent_k_head_stride * g.n_kv_heads;
    a.recent_v = v_rows.data();
    a.recent_v_head_stride = size_t{capacity} * g.head_dim_v * sizeof(uint16_t);
    a.recent_v_stream_stride = a.recent_v_head_stride * g.n_kv_heads;
  }
  return kvt_attend(codec_for(g.codec, g.head_dim_k, g.head_dim_v), &a);
}
