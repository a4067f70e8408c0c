// A cache as an engine drives it: kvt_cuda_encode with several streams, conditioning, first rows and ring, and kvt_cuda_decode.
// Pages must have the CPU encoder's bytes, the ring must follow a model on the host over random sequences of batches, and decoded
// rows must be those of kvt_decode within rounding (1e-5 of the row's length in fp32).

#include <optional>
#include <set>

#include "api/engine_encode.h"
#include "cuda_cache_support.h"

namespace kvt_test {
namespace {

class CudaCache : public CudaTest {};

// What the device should hold.
class HostCache {
 public:
  explicit HostCache(const CacheTensor& tensor)
      : t_(tensor),
        s_(tensor.shape),
        codec_(make_codec(s_.codec, s_.d, s_.d)),
        pages_(s_.n_streams * s_.stream_stride()),
        first_(size_t{s_.n_streams} * s_.n_heads * s_.n_first * s_.d),
        ring_(size_t{s_.n_streams} * s_.n_heads * s_.capacity * s_.d),
        ring_cells_(size_t{s_.n_streams} * s_.capacity, -1),
        ring_next_(s_.n_streams) {}

  std::vector<uint16_t> to_halves(const std::vector<float>& rows) const {
    std::vector<uint16_t> halves(rows.size());
    kvt_internal::floats_to_halves(codec_.get(), rows.data(), rows.size(), halves.data());
    return halves;
  }

  // is_left_alone(row, head): the row is unchanged.
  template <class Skip>
  void write(const Batch& batch, bool in_place, const Skip& is_left_alone) {
    const std::vector<uint16_t> halves = to_halves(batch.rows);
    std::vector<float> rounded(halves.size());
    kvt_internal::halves_to_floats(codec_.get(), halves.data(), halves.size(), rounded.data());
    std::vector<size_t> n_of_stream(s_.n_streams);
    for (const int64_t cell : batch.cells) {
      if (cell >= 0) ++n_of_stream[static_cast<size_t>(cell / s_.n_cells)];
    }
    for (size_t i = 0; i < batch.cells.size(); ++i) {
      if (batch.cells[i] < 0) continue;
      const auto stream = static_cast<size_t>(batch.cells[i] / s_.n_cells);
      const int64_t cell = batch.cells[i] % s_.n_cells;
      const std::optional<size_t> slot = in_place ? slot_of(stream, cell) : push(stream, cell, n_of_stream[stream]--);
      for (size_t head = 0; head < s_.n_heads; ++head) {
        if (is_left_alone(i, head)) continue;
        const size_t at = (i * s_.n_heads + head) * s_.d;
        std::vector<float> row(rounded.begin() + static_cast<ptrdiff_t>(at), rounded.begin() + static_cast<ptrdiff_t>(at + s_.d));
        if (s_.conditioned) {
          const float unit = t_.mean_unit(stream, head, cell);
          for (size_t k = 0; k < s_.d; ++k) row[k] = (row[k] - unit * t_.mean_code(stream, head, cell, k)) * t_.inverse[head * s_.d + k];
        }
        kvt_internal::encode_unchecked(codec_.get(), s_.side, row.data(), s_.d, 1, &cell, page_of_head(stream, head), s_.page_bytes());
        if (cell < s_.n_first) std::copy_n(&halves[at], s_.d, &first_[((stream * s_.n_heads + head) * s_.n_first + static_cast<size_t>(cell)) * s_.d]);
        if (slot) std::copy_n(&halves[at], s_.d, &ring_[((stream * s_.n_heads + head) * s_.capacity + *slot) * s_.d]);
      }
    }
  }

  // [stream, cell, head, d]
  std::vector<float> decode(uint32_t first_cell, uint32_t n_cells, uint32_t window) const {
    std::vector<float> rows;
    std::vector<float> row(s_.d);
    for (size_t stream = 0; stream < s_.n_streams; ++stream) {
      const std::set<int64_t> in_window = newest(stream, window);
      for (size_t cell = first_cell; cell < first_cell + n_cells; ++cell) {
        for (size_t head = 0; head < s_.n_heads; ++head) {
          EXPECT_EQ(kvt_decode(codec_.get(), s_.side, const_cast<HostCache*>(this)->page_of_head(stream, head), s_.page_bytes(), cell, 1,
                               row.data(), s_.d),
                    KVT_OK);
          for (size_t k = 0; s_.conditioned && k < s_.d; ++k) {
            const auto at = static_cast<int64_t>(cell);
            row[k] = row[k] * t_.scale[head * s_.d + k] + t_.mean_unit(stream, head, at) * t_.mean_code(stream, head, at, k);
          }
          const size_t unit = stream * s_.n_heads + head;
          const uint16_t* exact = nullptr;
          if (cell < s_.n_first) {
            exact = &first_[(unit * s_.n_first + cell) * s_.d];
          } else if (in_window.count(static_cast<int64_t>(cell)) > 0) {
            exact = &ring_[(unit * s_.capacity + *slot_of(stream, static_cast<int64_t>(cell))) * s_.d];
          }
          if (exact != nullptr) kvt_internal::halves_to_floats(codec_.get(), exact, s_.d, row.data());
          rows.insert(rows.end(), row.begin(), row.end());
        }
      }
    }
    return rows;
  }

  void compare(const std::string& when) const {
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << when;
    compare_array("ring_cells", t_.ring_cells.host(), ring_cells_, when);
    compare_array("ring_next", t_.ring_next.host(), ring_next_, when);
    compare_array("first rows", t_.first.host(), first_, when);
    std::vector<uint16_t> ring = t_.ring.host();
    for (size_t i = 0; i < ring.size(); ++i) {  // what an empty slot holds does not matter
      const size_t slot = i / s_.d % s_.capacity, stream = i / s_.d / s_.capacity / s_.n_heads;
      if (ring_cells_[stream * s_.capacity + slot] < 0) ring[i] = ring_[i];
    }
    compare_array("ring rows", ring, ring_, when);
    compare_array("pages", t_.pages.host(), pages_, when);
  }

 private:
  uint8_t* page_of_head(size_t stream, size_t head) { return &pages_[stream * s_.stream_stride() + head * s_.head_stride()]; }

  std::optional<size_t> slot_of(size_t stream, int64_t cell) const {
    for (size_t e = 0; e < s_.capacity; ++e) {
      if (ring_cells_[stream * s_.capacity + e] == cell) return e;
    }
    return std::nullopt;
  }
  // n_left: rows of the batch for this stream, this one included.
  std::optional<size_t> push(size_t stream, int64_t cell, size_t n_left) {
    if (const std::optional<size_t> old = slot_of(stream, cell)) ring_cells_[stream * s_.capacity + *old] = -1;
    if (n_left > s_.capacity) return std::nullopt;
    const size_t slot = ring_next_[stream];
    ring_next_[stream] = static_cast<uint32_t>((slot + 1) % s_.capacity);
    ring_cells_[stream * s_.capacity + slot] = static_cast<int32_t>(cell);
    return slot;
  }
  std::set<int64_t> newest(size_t stream, uint32_t window) const {
    std::set<int64_t> cells;
    for (size_t age = 0; age < s_.capacity && cells.size() < window; ++age) {
      const int32_t cell = ring_cells_[stream * s_.capacity + (ring_next_[stream] + 2 * s_.capacity - 1 - age) % s_.capacity];
      if (cell >= 0) cells.insert(cell);
    }
    return cells;
  }
  template <class T>
  void compare_array(const char* what, const std::vector<T>& actual, const std::vector<T>& expected, const std::string& when) const {
    ASSERT_EQ(actual.size(), expected.size());
    size_t n_bad = 0, first_bad = 0;
    for (size_t i = actual.size(); i-- > 0;) {
      if (actual[i] == expected[i]) continue;
      ++n_bad;
      first_bad = i;
    }
    if (n_bad > 0) {
      ADD_FAILURE() << s_.name() << ", " << when << ": " << what << ": " << n_bad << " of " << actual.size() << " differ, first at "
                    << first_bad << " (of a stream's " << actual.size() / s_.n_streams << "): " << +actual[first_bad] << " instead of "
                    << +expected[first_bad];
    }
  }

  const CacheTensor& t_;
  const TensorShape& s_;
  CodecPtr codec_;
  std::vector<uint8_t> pages_;
  std::vector<uint16_t> first_, ring_;
  std::vector<int32_t> ring_cells_;
  std::vector<uint32_t> ring_next_;
};

// Mostly the next cells of the streams, in turn; every third batch begins with cells that were written before; some are skipped.
Batch make_batch(const TensorShape& s, uint64_t seed, size_t n, std::vector<int64_t>* written) {
  Batch batch;
  std::set<int64_t> used;
  for (size_t i = 0; batch.cells.size() < n && i < 20 * n; ++i) {
    const uint64_t pick = splitmix64(seed, i);
    const size_t stream = pick % s.n_streams;
    int64_t cell = (*written)[stream];
    if (seed % 3 == 0 && i < n / 2 + 1 && cell > 0) {
      cell = static_cast<int64_t>((pick >> 8) % static_cast<uint64_t>(cell));
    } else if ((*written)[stream] < s.n_cells) {
      ++(*written)[stream];
    } else {
      cell = static_cast<int64_t>((pick >> 8) % static_cast<uint64_t>(s.n_cells));
    }
    const int64_t place = static_cast<int64_t>(stream) * s.n_cells + cell;
    if (!used.insert(place).second) continue;
    batch.cells.push_back((pick >> 40) % 23 == 0 ? -1 - place : place);
  }
  batch.rows = gaussian_rows(seed + 1000, batch.cells.size() * s.n_heads, s.d);
  return batch;
}

const auto kAllRows = [](size_t, size_t) { return false; };

// kvt_cuda_decode against the host's cache.
void compare_decoded(const CacheTensor& tensor, const HostCache& host, uint32_t first, uint32_t n, uint32_t window) {
  const TensorShape& s = tensor.shape;
  const std::vector<float> expected = host.decode(first, n, window);
  for (const kvt_cuda_type type : {KVT_CUDA_F32, KVT_CUDA_F16}) {
    DeviceArray<uint8_t> dst(expected.size() * (type == KVT_CUDA_F32 ? 4 : 2));
    dst.fill_bytes(0xff);  // NaN
    const kvt_cuda_decode_args args = tensor.decode_args(dst.get(), type, first, n, window);
    ASSERT_EQ(kvt_cuda_decode(&args, nullptr), KVT_OK) << s.name();
    expect_finished();
    const std::vector<uint8_t> bytes = dst.host();
    const double bound = type == KVT_CUDA_F32 ? 1e-5 : 6e-4;  // fp16: 2^-11 of each value,
    const double step = type == KVT_CUDA_F32 ? 0.0 : 0x1p-25;  // or half the least number
    double worst = 0;
    size_t worst_row = 0;
    for (size_t row = 0; row < expected.size() / s.d; ++row) {
      double error = 0, size = 0;
      for (size_t i = row * s.d; i < (row + 1) * s.d; ++i) {
        double x;
        if (type == KVT_CUDA_F32) {
          float f;
          std::memcpy(&f, &bytes[4 * i], 4);
          x = static_cast<double>(f);
        } else {
          uint16_t h;
          std::memcpy(&h, &bytes[2 * i], 2);
          x = half_value(h);
        }
        const double e = std::max(std::fabs(x - static_cast<double>(expected[i])) - step, 0.0);
        error += e * e;
        size += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
      }
      const double relative = error > 0 ? std::sqrt(error / size) : error;
      if (!(relative <= worst) && !std::isnan(worst)) {
        worst = relative;
        worst_row = row;
      }
    }
    EXPECT_LE(worst, bound) << s.name() << " type " << type << " cells " << first << " + " << n << " window " << window << ": row "
                            << worst_row << " = stream " << worst_row / (size_t{n} * s.n_heads) << " cell "
                            << first + worst_row / s.n_heads % n << " head " << worst_row % s.n_heads;
  }
}

void run_sequence(const TensorShape& shape, uint64_t seed, std::initializer_list<size_t> sizes, kvt_cuda_type type,
                  kvt_cuda_index_type cells_type) {
  CacheTensor tensor(shape);
  HostCache host(tensor);
  std::vector<int64_t> written(shape.n_streams);
  size_t step = 0;
  for (const size_t n : sizes) {
    const Batch batch = make_batch(shape, seed + step, n, &written);
    const auto n_rows = static_cast<uint32_t>(batch.cells.size());
    DeviceArray<float> floats(batch.rows);
    DeviceArray<uint16_t> halves(host.to_halves(batch.rows));
    DeviceArray<int64_t> cells(batch.cells);
    DeviceArray<int32_t> narrow_cells(std::vector<int32_t>(batch.cells.begin(), batch.cells.end()));
    const void* src = type == KVT_CUDA_F32 ? static_cast<const void*>(floats.get()) : halves.get();
    const void* where = cells_type == KVT_CUDA_I64 ? static_cast<const void*>(cells.get()) : narrow_cells.get();
    kvt_cuda_encode_args args = tensor.encode_args(src, type, where, n_rows);
    args.cells_type = cells_type;
    ASSERT_EQ(kvt_cuda_encode(&args, nullptr), KVT_OK) << shape.name();
    host.write(batch, false, kAllRows);
    host.compare("batch " + std::to_string(step) + " of " + std::to_string(n_rows) + " rows");
    if (testing::Test::HasFailure()) return;
    ++step;
  }
  const auto n = static_cast<uint32_t>(shape.n_cells);
  const uint32_t window = shape.capacity > 8 ? shape.capacity - 8 : 0;
  compare_decoded(tensor, host, 0, n, window);
  compare_decoded(tensor, host, 61, 70, shape.capacity);
  compare_decoded(tensor, host, n - 3, 3, 0);
}

// Batches of one token, of drafts, about a block of 32, about the ring's capacity, prompts, and many times the capacity.
TEST_F(CudaCache, RingAndFirstRows) {
  uint64_t seed = 100;
  for (const kvt_codec_id codec : kCodeCodecs) {
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
      TensorShape shape{.codec = codec, .side = side, .n_cells = 300, .n_first = 4, .capacity = 56};
      run_sequence(shape, seed += 50, {1, 1, 2, 40, 1, 8, 57, 1, 33, 3, 8, 1}, KVT_CUDA_F32, KVT_CUDA_I64);
      shape.n_streams = 3;
      shape.n_cells = 650;  // not a multiple of 64: streams begin in the middle of nothing
      run_sequence(shape, seed += 50, {3, 1, 5, 700, 8, 300, 1, 64, 2}, KVT_CUDA_F16, KVT_CUDA_I32);
    }
  }
  run_sequence({.n_streams = 2, .n_cells = 200, .n_first = 64, .capacity = 128}, seed += 50, {300, 1, 30, 7}, KVT_CUDA_F32, KVT_CUDA_I64);
  run_sequence({.n_cells = 200, .n_first = 0, .capacity = 1}, seed += 50, {3, 1, 1, 90}, KVT_CUDA_F32, KVT_CUDA_I64);
  run_sequence({.n_cells = 200, .n_first = 1, .capacity = 0}, seed += 50, {3, 1, 90}, KVT_CUDA_F32, KVT_CUDA_I64);
}

TEST_F(CudaCache, ConditionedKeys) {
  uint64_t seed = 5000;
  for (const kvt_codec_id codec : kCodeCodecs) {
    run_sequence({.codec = codec, .n_streams = 2, .n_cells = 700, .n_first = 4, .capacity = 56, .conditioned = true}, seed += 50,
                 {100, 1, 1, 8, 400, 60, 1}, KVT_CUDA_F32, KVT_CUDA_I64);
  }
}

TEST_F(CudaCache, DecodesEveryHeadDim) {
  uint64_t seed = 9000;
  for (const kvt_codec_id codec : kCudaCodecs) {
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
      for (const uint32_t d : kHeadDims) {
        run_sequence({.codec = codec, .side = side, .d = d, .n_streams = 2, .n_cells = 150}, seed += 50, {150, 1, 200}, KVT_CUDA_F32,
                     KVT_CUDA_I64);
      }
    }
  }
}

// A range is decoded, some rows of some heads change, and all of it is written back: other cells keep their bytes.
TEST_F(CudaCache, UnchangedRowsStay) {
  uint64_t seed = 20000;
  for (const kvt_codec_id codec : kCudaCodecs) {
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
      const bool code = codec != KVT_CODEC_F16;
      const TensorShape s{.codec = codec,
                          .side = side,
                          .n_streams = 2,
                          .n_cells = 150,
                          .n_first = code ? 4u : 0u,
                          .capacity = code ? 56u : 0u,
                          .conditioned = code && side == KVT_KEY};
      CacheTensor tensor(s);
      HostCache host(tensor);
      std::vector<int64_t> written(s.n_streams);
      const Batch batch = make_batch(s, seed += 50, 250, &written);
      DeviceArray<float> src(batch.rows);
      DeviceArray<int64_t> cells(batch.cells);
      kvt_cuda_encode_args args = tensor.encode_args(src.get(), KVT_CUDA_F32, cells.get(), static_cast<uint32_t>(batch.cells.size()));
      ASSERT_EQ(kvt_cuda_encode(&args, nullptr), KVT_OK);
      host.write(batch, false, kAllRows);

      const auto n = static_cast<uint32_t>(s.n_cells);
      const size_t n_rows = size_t{n} * s.n_streams;
      DeviceArray<uint16_t> before(n_rows * s.n_heads * s.d);
      const kvt_cuda_decode_args decode = tensor.decode_args(before.get(), KVT_CUDA_F16, 0, n, 48);
      ASSERT_EQ(kvt_cuda_decode(&decode, nullptr), KVT_OK);
      expect_finished();
      std::vector<uint16_t> changed = before.host();
      const auto is_left_alone = [](size_t row, size_t head) { return (row * 2 + head) % 5 < 3; };
      for (size_t i = 0; i < changed.size(); ++i) {
        if (!is_left_alone(i / s.d / s.n_heads, i / s.d % s.n_heads)) changed[i] = static_cast<uint16_t>(changed[i] ^ 0x8001u);
      }
      DeviceArray<uint16_t> after(changed);
      DeviceArray<int64_t> all_cells(cells_from(0, n_rows));
      args = tensor.encode_args(after.get(), KVT_CUDA_F16, all_cells.get(), static_cast<uint32_t>(n_rows));
      args.unchanged = before.get();
      args.exact_in_place = 1;
      ASSERT_EQ(kvt_cuda_encode(&args, nullptr), KVT_OK);
      Batch again{std::vector<float>(changed.size()), cells_from(0, n_rows)};
      for (size_t i = 0; i < changed.size(); ++i) again.rows[i] = static_cast<float>(half_value(changed[i]));
      host.write(again, true, is_left_alone);
      host.compare("written back");
      compare_decoded(tensor, host, 0, n, 48);
    }
  }
}

// Keys and values at once: what two calls write. Few rows are cut into small blocks, many into whole ones.
TEST_F(CudaCache, AppendsBothSides) {
  uint64_t seed = 30000;
  for (const kvt_codec_id codec : kCudaCodecs) {
    const bool code = codec != KVT_CODEC_F16;
    for (const auto& [d_k, d_v] : {std::pair{128u, 128u}, {192u, 128u}, {64u, 256u}}) {
      const TensorShape k_shape{.codec = codec,
                                .side = KVT_KEY,
                                .d = d_k,
                                .n_streams = 2,
                                .n_cells = 2000,
                                .n_first = code ? 4u : 0u,
                                .capacity = code ? 56u : 0u,
                                .conditioned = code};
      TensorShape v_shape = k_shape;
      v_shape.side = KVT_VALUE;
      v_shape.d = d_v;
      v_shape.conditioned = false;
      CacheTensor k(k_shape), v(v_shape);
      HostCache host_k(k), host_v(v);
      std::vector<int64_t> k_written(2), v_written(2);
      for (const size_t n : {1, 2, 9, 100, 700, 1}) {
        const Batch k_batch = make_batch(k_shape, ++seed, n, &k_written), v_batch = make_batch(v_shape, seed, n, &v_written);
        ASSERT_EQ(k_batch.cells, v_batch.cells);
        DeviceArray<float> k_rows(k_batch.rows), v_rows(v_batch.rows);
        DeviceArray<int64_t> cells(k_batch.cells);
        const auto n_rows = static_cast<uint32_t>(k_batch.cells.size());
        const kvt_cuda_encode_args k_args = k.encode_args(k_rows.get(), KVT_CUDA_F32, cells.get(), n_rows),
                                   v_args = v.encode_args(v_rows.get(), KVT_CUDA_F32, cells.get(), n_rows);
        ASSERT_EQ(kvt_cuda_append(&k_args, &v_args, nullptr), KVT_OK);
        host_k.write(k_batch, false, kAllRows);
        host_v.write(v_batch, false, kAllRows);
        host_k.compare(std::to_string(n_rows) + " rows");
        host_v.compare(std::to_string(n_rows) + " rows");
        if (HasFailure()) return;
      }
      kvt_cuda_encode_args a = k.encode_args(nullptr, KVT_CUDA_F32, nullptr, 0), b = v.encode_args(nullptr, KVT_CUDA_F32, nullptr, 0);
      EXPECT_EQ(kvt_cuda_append(&a, &b, nullptr), KVT_OK);
      EXPECT_EQ(kvt_cuda_append(&b, &a, nullptr), KVT_ERROR_INVALID_ARGUMENT);
      EXPECT_EQ(kvt_cuda_append(&a, nullptr, nullptr), KVT_ERROR_INVALID_ARGUMENT);
    }
  }
}

// What kvt_cuda_begin_means should make of a run of cells, in double precision from what kvt_decode gives.
struct MeanModel {
  const CacheTensor& t;
  std::vector<float> units;
  std::vector<int8_t> codes;

  explicit MeanModel(const CacheTensor& tensor) : t(tensor), units(tensor.d_units.host()), codes(tensor.d_means.host()) {}

  void begin(const std::vector<uint8_t>& pages, size_t stream, size_t head, int64_t cell) {
    const TensorShape& s = t.shape;
    const size_t run = t.run_of(stream, head, cell);
    if (units[run] >= 0) return;
    const int64_t run_end = cell / s.mean_cells * s.mean_cells, end = run_end - 16;
    const CodecPtr codec = make_codec(s.codec, s.d, s.d);
    std::vector<double> sum[2] = {std::vector<double>(s.d), std::vector<double>(s.d)};
    double n[2] = {0, 0};
    std::vector<float> row(s.d);
    for (int64_t i = std::max<int64_t>(run_end - s.mean_cells, s.n_first); i < end; ++i) {
      EXPECT_EQ(kvt_decode(codec.get(), s.side, &pages[stream * s.stream_stride() + head * s.head_stride()], s.page_bytes(),
                           static_cast<size_t>(i), 1, row.data(), s.d),
                KVT_OK);
      if (std::all_of(row.begin(), row.end(), [](float x) { return x == 0; })) continue;
      for (const int which : {0, 1}) {
        if (which == 1 && i < end - 64) continue;
        for (size_t k = 0; k < s.d; ++k) sum[which][k] += static_cast<double>(row[k]);
        ++n[which];
      }
    }
    if (n[0] < 64) {
      size_t from = run, first = run - static_cast<size_t>(cell) / s.mean_cells;
      while (from > first && units[from] < 0) --from;
      units[run] = std::max(units[from], 0.0f);
      std::copy_n(codes.begin() + static_cast<ptrdiff_t>(from * s.d), s.d, codes.begin() + static_cast<ptrdiff_t>(run * s.d));
      return;
    }
    std::vector<double> mean(s.d);
    double largest = 0;
    for (size_t k = 0; k < s.d; ++k) {
      double average[2];
      for (const int which : {0, 1}) {
        average[which] = sum[which][k] / std::max(1.0, n[which]) * static_cast<double>(t.scale[head * s.d + k]) +
                         static_cast<double>(std::max(units[run - 1], 0.0f)) * static_cast<double>(codes[(run - 1) * s.d + k]);
      }
      const double all = average[0], newest = 2 * n[1] >= 64 ? average[1] : all, larger = std::max(all * all, newest * newest);
      mean[k] = larger > 0 ? std::max(0.0, all * newest / larger) * newest : 0;
      if (!std::isfinite(all) || !std::isfinite(newest)) mean[k] = NAN;
      largest = std::fabs(mean[k]) >= largest ? std::fabs(mean[k]) : std::isnan(mean[k]) ? NAN : largest;
    }
    units[run] = std::isfinite(largest) ? static_cast<float>(largest / 127) : 0.0f;
    for (size_t k = 0; k < s.d; ++k) codes[run * s.d + k] = units[run] > 0 ? static_cast<int8_t>(std::nearbyint(mean[k] / largest * 127)) : int8_t{0};
  }

  // Units within 1e-5, codes within one step; then goes on from what the device has.
  void compare(const std::string& when) {
    const std::vector<float> d_units = t.d_units.host();
    const std::vector<int8_t> d_codes = t.d_means.host();
    for (size_t run = 0; run < units.size(); ++run) {
      ASSERT_NEAR(d_units[run], units[run], std::fabs(units[run]) * 1e-5f) << t.shape.name() << ", " << when << ": unit " << run;
      for (size_t i = run * t.shape.d; i < (run + 1) * t.shape.d; ++i)
        ASSERT_LE(std::abs(d_codes[i] - codes[i]), 1) << t.shape.name() << ", " << when << ": code " << i % t.shape.d << " of " << run;
    }
    units = d_units;
    codes = d_codes;
  }
};

// Rows whose averages drift, in batches that begin with runs of cells; some cells stay empty, one stream lags behind, a run is skipped
// and a NaN is written. Means are begun before each batch, twice: the second time nothing may change.
TEST_F(CudaCache, BeginsMeans) {
  uint64_t seed = 40000;
  for (const kvt_codec_id codec : kCodeCodecs) {
    for (const uint32_t d : {64u, 80u, 128u, 256u}) {
      for (const uint32_t mean_cells : {128u, 512u}) {
        const TensorShape s{.codec = codec,
                            .d = d,
                            .n_streams = 2,
                            .n_cells = 8 * mean_cells,
                            .n_first = 4,
                            .capacity = 56,
                            .conditioned = true,
                            .mean_cells = mean_cells};
        CacheTensor tensor(s);
        std::vector<float> units(tensor.units.size(), -1.0f);
        std::vector<int8_t> codes(tensor.means.size());
        for (size_t unit = 0; unit < size_t{s.n_streams} * s.n_heads; ++unit) {  // the first runs' are learnt from prompts
          units[unit * s.n_means()] = 0.01f;
          for (size_t k = 0; k < d; ++k) codes[unit * s.n_means() * d + k] = static_cast<int8_t>(splitmix64(54, unit * d + k) % 255 - 127);
        }
        tensor.d_units.set(units);
        tensor.d_means.set(codes);
        MeanModel model(tensor);
        const auto batch = [&](const std::vector<int64_t>& cells, float poison) {
          std::vector<float> rows = gaussian_rows(++seed, cells.size() * s.n_heads, d);
          for (size_t i = 0; i < rows.size(); ++i) {
            const double turn = static_cast<double>(cells[i / d / s.n_heads] % s.n_cells) / static_cast<double>(s.n_cells) * static_cast<double>(i % d) / 16;
            rows[i] += 2 * static_cast<float>(std::cos(turn));
          }
          rows[0] += poison;
          DeviceArray<float> src(rows);
          DeviceArray<int64_t> d_cells(cells);
          const kvt_cuda_encode_args args = tensor.encode_args(src.get(), KVT_CUDA_F32, d_cells.get(), static_cast<uint32_t>(cells.size()));
          const std::vector<uint8_t> pages = tensor.pages.host();
          for (const int64_t cell : cells) {
            for (size_t head = 0; head < s.n_heads; ++head) {
              if (cell >= 0) model.begin(pages, static_cast<size_t>(cell / s.n_cells), head, cell % s.n_cells);
            }
          }
          ASSERT_EQ(kvt_cuda_begin_means(&args, tensor.d_scale.get(), nullptr), KVT_OK);
          expect_finished();
          const std::vector<float> begun = tensor.d_units.host();
          model.compare("cell " + std::to_string(cells[0]));
          ASSERT_EQ(kvt_cuda_begin_means(&args, tensor.d_scale.get(), nullptr), KVT_OK);
          expect_finished();
          ASSERT_EQ(tensor.d_units.host(), begun);
          ASSERT_EQ(tensor.d_means.host(), model.codes);
          ASSERT_EQ(kvt_cuda_encode(&args, nullptr), KVT_OK);
          expect_finished();
        };
        const auto range = [&](size_t stream, int64_t from, int64_t end) {
          std::vector<int64_t> cells;
          for (int64_t cell = from; cell < end; ++cell) cells.push_back(static_cast<int64_t>(stream) * s.n_cells + cell);
          return cells;
        };
        const auto m = static_cast<int64_t>(mean_cells);
        batch(range(0, 0, m), 0);
        batch(range(0, m, 2 * m - 30), 0);        // its end stays empty
        std::vector<int64_t> both = range(0, 2 * m, 2 * m + 300);  // several runs at once: the later ones see no cells, or those before
        const std::vector<int64_t> other = range(1, 0, 40);
        both.insert(both.end(), other.begin(), other.end());
        both[7] = -1;
        batch(both, 0);
        batch(range(1, m, m + 20), 0);            // too few cells before: the mean of the run before
        batch(range(0, 6 * m - 9, 6 * m + 7), 0);  // over a boundary; the run before is nearly empty
        batch(range(1, 2 * m - 100, 2 * m), NAN);
        batch(range(1, 2 * m, 2 * m + 1), 0);
        if (HasFailure()) return;
      }
    }
  }
  TensorShape s;
  CacheTensor plain(s);
  DeviceArray<float> src(s.n_heads * s.d);
  DeviceArray<int64_t> cells(std::vector<int64_t>{0});
  kvt_cuda_encode_args args = plain.encode_args(src.get(), KVT_CUDA_F32, cells.get(), 1);
  EXPECT_EQ(kvt_cuda_begin_means(&args, plain.d_scale.get(), nullptr), KVT_ERROR_INVALID_ARGUMENT);
  args.n_rows = 0;
  EXPECT_EQ(kvt_cuda_begin_means(&args, plain.d_scale.get(), nullptr), KVT_OK);
  EXPECT_EQ(kvt_cuda_begin_means(nullptr, plain.d_scale.get(), nullptr), KVT_ERROR_INVALID_ARGUMENT);
}

// A view of the cache that begins at a row; rows that are refused.
TEST_F(CudaCache, OffsetAndRefusedRows) {
  const TensorShape s{.n_streams = 2, .n_cells = 100, .n_first = 4, .capacity = 8};
  CacheTensor tensor(s);
  HostCache host(tensor);
  Batch batch{gaussian_rows(77, 40 * s.n_heads, s.d), cells_from(80, 40)};
  batch.rows[5 * s.n_heads * s.d] = 70000.0f;  // infinite in fp16, so refused
  DeviceArray<float> src(batch.rows);
  DeviceArray<int64_t> cells(cells_from(30, 40));
  DeviceArray<uint32_t> n_refused(std::vector<uint32_t>{0});
  kvt_cuda_encode_args args = tensor.encode_args(src.get(), KVT_CUDA_F32, cells.get(), 40);
  args.cell_offset = 50;
  args.n_refused = n_refused.get();
  ASSERT_EQ(kvt_cuda_encode(&args, nullptr), KVT_OK);
  host.write(batch, false, kAllRows);
  host.compare("offset");
  EXPECT_EQ(n_refused.host()[0], 1u);
}

TEST_F(CudaCache, RefusesBadArguments) {
  const TensorShape s{.n_first = 4, .capacity = 8};
  CacheTensor tensor(s);
  DeviceArray<float> rows(s.n_heads * s.d);
  DeviceArray<int64_t> cells(std::vector<int64_t>{0});
  const auto encode = [&](auto change) {
    kvt_cuda_encode_args args = tensor.encode_args(rows.get(), KVT_CUDA_F32, cells.get(), 1);
    change(args);
    return kvt_cuda_encode(&args, nullptr);
  };
  EXPECT_EQ(encode([](auto&) {}), KVT_OK);
  EXPECT_EQ(encode([](auto& a) { a.cells_per_stream = -1; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(encode([](auto& a) { a.stream_stride = 8; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(encode([&](auto& a) { a.key_inverse_scale = rows.get(); }), KVT_ERROR_INVALID_ARGUMENT);
  const auto with_means = [&](auto change) {
    return encode([&](auto& a) {
      a.key_inverse_scale = rows.get();
      tensor.set_means(&a);
      change(a);
    });
  };
  EXPECT_EQ(with_means([](auto&) {}), KVT_OK);
  EXPECT_EQ(with_means([](auto& a) { a.side = KVT_VALUE; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(with_means([](auto& a) { a.mean_cells = 100; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(with_means([](auto& a) { a.key_mean_head_stride = 8; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(with_means([](auto& a) { a.key_mean_unit = nullptr; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(encode([&](auto& a) { a.unchanged = rows.get(); }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(encode([](auto& a) { a.codec = KVT_CODEC_F16; }), KVT_ERROR_INVALID_ARGUMENT);
  const auto decode = [&](auto change) {
    kvt_cuda_decode_args args = tensor.decode_args(rows.get(), KVT_CUDA_F32, 0, 1, 8);
    change(args);
    return kvt_cuda_decode(&args, nullptr);
  };
  EXPECT_EQ(decode([](auto&) {}), KVT_OK);
  EXPECT_EQ(decode([](auto& a) { a.n_cells = 0; }), KVT_OK);
  EXPECT_EQ(decode([](auto& a) { a.struct_size = 8; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(decode([](auto& a) { a.codec = static_cast<kvt_codec_id>(99); }), KVT_ERROR_UNKNOWN_CODEC);
  EXPECT_EQ(decode([](auto& a) { a.head_dim = 72; }), KVT_ERROR_HEAD_DIM);
  EXPECT_EQ(decode([](auto& a) { a.dst = nullptr; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(decode([](auto& a) { a.dst_row_stride = 8; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(decode([](auto& a) { a.n_streams = 2; }), KVT_ERROR_INVALID_ARGUMENT);  // more than the exact rows have
  expect_finished();
}

}  // namespace
}  // namespace kvt_test
