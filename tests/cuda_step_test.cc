// kvt_cuda_attend with a prepared step, as an engine drives it: rows are encoded into a cache with first rows and ring, a step is
// prepared from the mask, and attention must be softmax attention in double precision in which each query attends its first
// cells and the newest rows that it sees exactly, all others by their codes. Bound: relative L2 error of a call 0.02 (see
// cuda_attend_test.cc). kvt_attend, which has the same rule, must agree within 0.04: both round queries and weights.

#include <algorithm>
#include <cstdio>
#include <set>

#include "cuda_cache_support.h"

namespace kvt_test {
namespace {

constexpr uint16_t kRemoved = 0xFC00;

enum class Mask { kNone, kCausal, kSequences, kBiases, kHoles };
const char* name_of(Mask mask) {
  const char* names[] = {"none", "causal", "sequences", "biases", "holes"};
  return names[static_cast<int>(mask)];
}

struct Scene {
  kvt_codec_id codec = KVT_CODEC_SCALAR43;
  uint32_t d_k = 128, d_v = 128, n_streams = 1, n_kv_heads = 2, n_group = 2, n_queries = 1;
  uint32_t n_cells = 512, n_filled = 500;  // attended, and written, of each stream
  Mask mask = Mask::kCausal;
  uint32_t n_first = 4, capacity = 56, window = 48;
  bool conditioned = false, slopes = false, sinks = false;
  float softcap = 0;

  std::string name() const {
    std::string text = kvt_codec_name(codec);
    const std::pair<const char*, uint32_t> fields[] = {
        {" dk ", d_k},         {" dv ", d_v},           {" streams ", n_streams}, {" heads ", n_kv_heads},
        {" group ", n_group},  {" queries ", n_queries}, {" cells ", n_cells},     {" filled ", n_filled},
        {" first ", n_first},  {" ring ", capacity},    {" window ", window},     {" conditioned ", conditioned},
        {" slopes ", slopes},  {" sinks ", sinks},      {" softcap ", softcap > 0}};
    for (const auto& [label, value] : fields) text.append(label).append(std::to_string(value));
    return text.append(" mask ").append(name_of(mask));
  }
  TensorShape tensor(kvt_side side) const {
    return {.codec = codec,
            .side = side,
            .d = side == KVT_KEY ? d_k : d_v,
            .n_streams = n_streams,
            .n_heads = n_kv_heads,
            .n_cells = n_cells + 70,
            .n_first = n_first,
            .capacity = capacity,
            .conditioned = conditioned && side == KVT_KEY};
  }
};

class Model {
 public:
  explicit Model(const Scene& s)
      : s_(s),
        n_heads_(s.n_kv_heads * s.n_group),
        mask_pitch_(s.n_cells + 3),
        k_(s.tensor(KVT_KEY)),
        v_(s.tensor(KVT_VALUE)),
        q_(size_t{s.n_streams} * s.n_queries * n_heads_ * s.d_k),
        d_mask_(size_t{s.n_streams} * s.n_queries * mask_pitch_),
        out_(size_t{s.n_streams} * s.n_queries * n_heads_ * s.d_v),
        d_slopes_(n_heads_),
        d_sinks_(n_heads_),
        mask(size_t{s.n_streams} * s.n_queries * mask_pitch_) {
    for (uint32_t h = 0; h < n_heads_; ++h) {
      slopes_.push_back(std::ldexp(1.0f, -static_cast<int>(h % 5)));
      sinks_.push_back(static_cast<float>(h % 7) - 2.0f);
    }
    d_slopes_.set(slopes_);
    d_sinks_.set(sinks_);
    set_queries(1);
    const kvt_cuda_step_args step = step_args();
    step_bytes_ = kvt_cuda_step_bytes(&step);
    EXPECT_GT(step_bytes_, 0u) << s.name();
    step_ = std::make_unique<DeviceArray<uint8_t>>(step_bytes_);
    step_->fill_bytes(0xAB);
    const kvt_cuda_attention attention = attend_args();
    workspace_bytes_ = kvt_cuda_attend_workspace_bytes(&attention);
    EXPECT_GT(workspace_bytes_, 0u) << s.name();
    workspace_ = std::make_unique<DeviceArray<uint8_t>>(workspace_bytes_);
    workspace_->fill_bytes(0xff);
  }

  // Prompts of different sizes, then single tokens, and some cells once more.
  void fill() {
    std::vector<int64_t> cells;
    for (uint32_t cell = 0; cell < s_.n_filled; ++cell) {
      for (uint32_t stream = 0; stream < s_.n_streams; ++stream) cells.push_back(place(stream, cell));
    }
    for (size_t done = 0, n = 1; done < cells.size(); done += n, n = n == 1 ? 200 : n == 200 ? 37 : 300)
      write({cells.begin() + static_cast<ptrdiff_t>(done), cells.begin() + static_cast<ptrdiff_t>(std::min(done + n, cells.size()))});
    for (uint32_t i = 0; i < 9 && s_.n_filled > 40; ++i) write({place(i % s_.n_streams, s_.n_filled - 1 - 3 * i)});
    make_mask();
  }
  int64_t place(uint32_t stream, uint32_t cell) const { return int64_t{stream} * k_.shape.n_cells + cell; }

  // New rows of both tensors.
  void write(const std::vector<int64_t>& cells) {
    DeviceArray<int64_t> d_cells(cells);
    DeviceArray<float> k(random_rows(cells.size(), s_.d_k)), v(random_rows(cells.size(), s_.d_v));
    encode(k.get(), v.get(), d_cells.get(), static_cast<uint32_t>(cells.size()), nullptr);
    expect_finished();
  }
  std::vector<float> random_rows(size_t n, uint32_t d) { return gaussian_rows(++seed_, n * s_.n_kv_heads, d); }
  void encode(const void* k, const void* v, const void* cells, uint32_t n, cudaStream_t stream) const {
    const kvt_cuda_encode_args key = k_.encode_args(k, KVT_CUDA_F32, cells, n), value = v_.encode_args(v, KVT_CUDA_F32, cells, n);
    if (s_.conditioned) {
      EXPECT_EQ(kvt_cuda_begin_means(&key, k_.d_scale.get(), stream), KVT_OK);
    }
    EXPECT_EQ(kvt_cuda_encode(&key, stream), KVT_OK);
    EXPECT_EQ(kvt_cuda_encode(&value, stream), KVT_OK);
  }

  uint16_t& mask_at(uint32_t stream, uint32_t query, uint32_t cell) {
    return mask[(size_t{stream} * s_.n_queries + query) * mask_pitch_ + cell];
  }
  void make_mask() {
    const uint16_t biases[] = {0, 0, kRemoved, half_bits_exact(-0.75), half_bits_exact(0.5), half_bits_exact(-3), 0x8000};
    for (uint32_t stream = 0; stream < s_.n_streams; ++stream) {
      for (uint32_t j = 0; j < s_.n_queries; ++j) {
        for (uint32_t cell = 0; cell < s_.n_cells; ++cell) {
          bool seen = cell < s_.n_filled;
          switch (s_.mask) {
            case Mask::kNone:
              seen = true;
              break;
            case Mask::kCausal:
              seen = cell + s_.n_queries <= s_.n_filled + j;
              break;
            case Mask::kSequences:  // prompts have pages of their own, later tokens lie in turn
              seen = seen && (cell < s_.n_cells / 2 / 64 * 64 ? cell / 64 : cell) % s_.n_queries == j;
              break;
            case Mask::kBiases:
              break;
            case Mask::kHoles:  // whole pages and parts of pages
              seen = seen && cell / 64 % 3 != 1 && cell % 50 > 3 && !(j == 1 && cell < s_.n_filled);
              break;
          }
          uint16_t m = seen ? 0 : kRemoved;
          if (seen && s_.mask == Mask::kBiases) m = biases[splitmix64(61 + j, stream * 10000 + cell) % std::size(biases)];
          mask_at(stream, j, cell) = m;
        }
      }
    }
    upload_mask();
  }
  void upload_mask() { d_mask_.set(mask); }

  void set_queries(uint64_t seed) {
    q = gaussian_rows(seed, size_t{s_.n_streams} * s_.n_queries * n_heads_, s_.d_k);
    q_.set(q);
  }

  kvt_cuda_step_args step_args() const {
    kvt_cuda_step_args a{};
    a.struct_size = sizeof a;
    a.n_streams = s_.n_streams;
    a.n_queries = s_.n_queries;
    a.n_cells = s_.n_cells;
    if (s_.mask != Mask::kNone) {
      a.mask = d_mask_.get();
      a.mask_query_stride = mask_pitch_ * 2;
      a.mask_stream_stride = s_.n_queries * a.mask_query_stride;
    }
    a.n_first = s_.n_first;
    a.window = s_.window;
    a.capacity = s_.capacity;
    a.ring_cells = k_.ring_cells.get();
    a.ring_next = k_.ring_next.get();
    return a;
  }
  kvt_cuda_attention attend_args() const {
    kvt_cuda_attention a{};
    a.struct_size = sizeof a;
    a.codec = s_.codec;
    a.head_dim_k = s_.d_k;
    a.head_dim_v = s_.d_v;
    a.n_streams = s_.n_streams;
    a.n_kv_heads = s_.n_kv_heads;
    a.n_group = s_.n_group;
    a.n_queries = s_.n_queries;
    a.max_cells = s_.n_cells;
    a.k_pages = k_.pages.get();
    a.k_page_stride = k_.shape.page_bytes();
    a.k_head_stride = k_.shape.head_stride();
    a.k_stream_stride = k_.shape.stream_stride();
    a.v_pages = v_.pages.get();
    a.v_page_stride = v_.shape.page_bytes();
    a.v_head_stride = v_.shape.head_stride();
    a.v_stream_stride = v_.shape.stream_stride();
    a.q = q_.get();
    a.q_head_stride = s_.d_k * sizeof(float);
    a.q_query_stride = n_heads_ * a.q_head_stride;
    a.q_stream_stride = s_.n_queries * a.q_query_stride;
    if (s_.slopes) a.slopes = d_slopes_.get();
    if (s_.sinks) a.sinks = d_sinks_.get();
    a.scale = 1.0f / std::sqrt(static_cast<float>(s_.d_k));
    a.logit_softcap = s_.softcap;
    a.out = out_.get();
    a.out_head_stride = s_.d_v * sizeof(float);
    a.out_query_stride = n_heads_ * a.out_head_stride;
    a.out_stream_stride = s_.n_queries * a.out_query_stride;
    if (s_.conditioned) {
      a.key_scale = k_.d_scale.get();
      k_.set_means(&a);
    }
    if (s_.n_first > 0 || s_.capacity > 0) {
      a.exact_k = &k_.exact;
      a.exact_v = &v_.exact;
    }
    a.step = step_ == nullptr ? nullptr : step_->get();
    a.recent_window = s_.window;
    return a;
  }
  void launch(cudaStream_t stream) {
    const kvt_cuda_step_args step = step_args();
    EXPECT_EQ(kvt_cuda_prepare_step(&step, step_->get(), step_bytes_, stream), KVT_OK);
    attend(attend_args(), stream);
  }
  void attend(const kvt_cuda_attention& args, cudaStream_t stream) {
    EXPECT_EQ(kvt_cuda_attend(&args, workspace_->get(), workspace_bytes_, stream), KVT_OK) << s_.name();
  }
  std::vector<float> run() {
    out_.fill_bytes(0xff);
    launch(nullptr);
    expect_finished();
    return out_.host();
  }
  DeviceArray<float>& out() { return out_; }
  CacheTensor& k() { return k_; }
  CacheTensor& v() { return v_; }

  // Which rows a query attends exactly: (cell, slot of the ring or -1).
  std::vector<std::pair<uint32_t, int>> exact_cells(uint32_t stream, uint32_t query) {
    std::vector<std::pair<uint32_t, int>> cells;
    const auto seen = [&](uint32_t cell) { return cell < s_.n_cells && mask_at(stream, query, cell) != kRemoved; };
    for (uint32_t cell = 0; cell < s_.n_first; ++cell) {
      if (seen(cell)) cells.push_back({cell, -1});
    }
    uint32_t n = 0;
    for (uint32_t age = 0; age < s_.capacity && n < s_.window; ++age) {
      const uint32_t slot = (h_next_[stream] + 2 * s_.capacity - 1 - age) % s_.capacity;
      const int32_t cell = h_ring_cells_[stream * s_.capacity + slot];
      if (cell < static_cast<int32_t>(s_.n_first) || !seen(static_cast<uint32_t>(cell))) continue;
      cells.push_back({static_cast<uint32_t>(cell), static_cast<int>(slot)});
      ++n;
    }
    return cells;
  }

  // Against double precision; returns the relative error.
  double check(const std::vector<float>& out) {
    read_back();
    double error = 0, size = 0, worst = 0;
    std::string where;
    std::vector<double> expected(s_.d_v);
    for (uint32_t stream = 0; stream < s_.n_streams; ++stream) {
      for (uint32_t query = 0; query < s_.n_queries; ++query) {
        for (uint32_t head = 0; head < n_heads_; ++head) {
          reference_row(stream, query, head, expected.data());
          const float* row = &out[((size_t{stream} * s_.n_queries + query) * n_heads_ + head) * s_.d_v];
          double e = 0, n = 0;
          for (uint32_t i = 0; i < s_.d_v; ++i) {
            e += (static_cast<double>(row[i]) - expected[i]) * (static_cast<double>(row[i]) - expected[i]);
            n += expected[i] * expected[i];
          }
          error += e;
          size += n;
          const double relative = n > 0 ? std::sqrt(e / n) : e > 0 ? 1e9 : std::sqrt(e);
          if (!(relative <= worst)) {
            worst = relative;
            where = "stream " + std::to_string(stream) + " query " + std::to_string(query) + " head " + std::to_string(head) + ": " +
                    std::to_string(row[0]) + " " + std::to_string(row[1]) + " for " + std::to_string(expected[0]) + " " +
                    std::to_string(expected[1]);
          }
        }
      }
    }
    const double relative = size > 0 ? std::sqrt(error / size) : std::sqrt(error);
    EXPECT_LE(relative, 0.02) << s_.name() << ", worst " << worst << " at " << where;
    EXPECT_LE(worst, 0.06) << s_.name() << " at " << where;
    return relative;
  }

  // Against kvt_attend.
  double check_cpu(const std::vector<float>& out) {
    read_back();
    const CodecPtr codec = make_codec(s_.codec, s_.d_k, s_.d_v);
    std::vector<float> expected(out.size());
    kvt_attention a{};
    a.struct_size = sizeof a;
    a.n_streams = s_.n_streams;
    a.n_kv_heads = s_.n_kv_heads;
    a.n_group = s_.n_group;
    a.n_queries = s_.n_queries;
    a.n_cells = s_.n_cells;
    const kvt_cuda_attention device = attend_args();
    a.k_pages = h_k_.data();
    a.k_page_stride = device.k_page_stride;
    a.k_head_stride = device.k_head_stride;
    a.k_stream_stride = device.k_stream_stride;
    a.v_pages = h_v_.data();
    a.v_page_stride = device.v_page_stride;
    a.v_head_stride = device.v_head_stride;
    a.v_stream_stride = device.v_stream_stride;
    a.q = q.data();
    a.q_query_stride = device.q_query_stride;
    a.q_head_stride = device.q_head_stride;
    a.q_stream_stride = device.q_stream_stride;
    if (s_.mask != Mask::kNone) {
      a.mask = mask.data();
      a.mask_query_stride = mask_pitch_ * 2;
      a.mask_stream_stride = s_.n_queries * a.mask_query_stride;
    }
    if (s_.slopes) a.slopes = slopes_.data();
    if (s_.sinks) a.sinks = sinks_.data();
    a.scale = device.scale;
    a.logit_softcap = device.logit_softcap;
    a.out = expected.data();
    a.out_query_stride = device.out_query_stride;
    a.out_head_stride = device.out_head_stride;
    a.out_stream_stride = device.out_stream_stride;
    if (s_.conditioned) {
      a.key_scale = k_.scale.data();
      k_.set_means(&a);
      a.key_mean = k_.means.data();
      a.key_mean_unit = k_.units.data();
    }
    a.n_exact = s_.n_first;
    a.exact_k = h_first_k_.data();
    a.exact_k_head_stride = k_.exact.first_head_stride;
    a.exact_k_stream_stride = k_.exact.first_stream_stride;
    a.exact_v = h_first_v_.data();
    a.exact_v_head_stride = v_.exact.first_head_stride;
    a.exact_v_stream_stride = v_.exact.first_stream_stride;
    // The ring as a list, oldest first.
    std::vector<int32_t> cells(h_ring_cells_.size());
    std::vector<uint16_t> ring_k(h_ring_k_.size()), ring_v(h_ring_v_.size());
    for (uint32_t stream = 0; stream < s_.n_streams; ++stream) {
      for (uint32_t e = 0; e < s_.capacity; ++e) {
        const uint32_t slot = (h_next_[stream] + e) % s_.capacity;
        cells[stream * s_.capacity + e] = h_ring_cells_[stream * s_.capacity + slot];
        for (uint32_t head = 0; head < s_.n_kv_heads; ++head) {
          const size_t unit = size_t{stream} * s_.n_kv_heads + head;
          std::copy_n(&h_ring_k_[(unit * s_.capacity + slot) * s_.d_k], s_.d_k, &ring_k[(unit * s_.capacity + e) * s_.d_k]);
          std::copy_n(&h_ring_v_[(unit * s_.capacity + slot) * s_.d_v], s_.d_v, &ring_v[(unit * s_.capacity + e) * s_.d_v]);
        }
      }
    }
    if (s_.window > 0) {
      a.n_recent = s_.capacity;
      a.recent_window = s_.window;
      a.recent_own = s_.capacity - 1;
      a.recent_cells = cells.data();
      a.recent_cells_stream_stride = s_.capacity * sizeof(int32_t);
      a.recent_k = ring_k.data();
      a.recent_k_head_stride = k_.exact.ring_head_stride;
      a.recent_k_stream_stride = k_.exact.ring_stream_stride;
      a.recent_v = ring_v.data();
      a.recent_v_head_stride = v_.exact.ring_head_stride;
      a.recent_v_stream_stride = v_.exact.ring_stream_stride;
    }
    EXPECT_EQ(kvt_attend(codec.get(), &a), KVT_OK) << s_.name();
    double error = 0, size = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      const double e = static_cast<double>(out[i]) - static_cast<double>(expected[i]);
      error += e * e;
      size += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
    }
    const double relative = size > 0 ? std::sqrt(error / size) : std::sqrt(error);
    EXPECT_LE(relative, 0.04) << s_.name() << " against kvt_attend";
    return relative;
  }

  std::vector<float> q;

 private:
  void read_back() {
    k_.units = k_.d_units.host();
    k_.means = k_.d_means.host();
    h_k_ = k_.pages.host();
    h_v_ = v_.pages.host();
    h_first_k_ = k_.first.host();
    h_first_v_ = v_.first.host();
    h_ring_k_ = k_.ring.host();
    h_ring_v_ = v_.ring.host();
    h_ring_cells_ = k_.ring_cells.host();
    h_next_ = k_.ring_next.host();
    EXPECT_EQ(h_ring_cells_, v_.ring_cells.host()) << s_.name();
    EXPECT_EQ(h_next_, v_.ring_next.host()) << s_.name();
    decoded_k_ = decode(k_.shape, h_k_);
    decoded_v_ = decode(v_.shape, h_v_);
  }
  // [stream, head, cell, d], as coded.
  std::vector<float> decode(const TensorShape& t, const std::vector<uint8_t>& pages) const {
    const CodecPtr codec = make_codec(t.codec, t.d, t.d);
    std::vector<float> rows(size_t{t.n_streams} * t.n_heads * s_.n_cells * t.d);
    for (uint32_t stream = 0; stream < t.n_streams; ++stream) {
      for (uint32_t head = 0; head < t.n_heads; ++head) {
        EXPECT_EQ(kvt_decode(codec.get(), t.side, &pages[stream * t.stream_stride() + head * t.head_stride()], t.page_bytes(), 0,
                             s_.n_cells, &rows[(size_t{stream} * t.n_heads + head) * s_.n_cells * t.d], t.d),
                  KVT_OK);
      }
    }
    return rows;
  }
  static double half_at(const std::vector<uint16_t>& rows, size_t unit, size_t n, size_t row, size_t d, size_t i) {
    return half_value(rows[(unit * n + row) * d + i]);
  }
  void reference_row(uint32_t stream, uint32_t query, uint32_t head, double* out) {
    const uint32_t kv_head = head / s_.n_group;
    const size_t unit = size_t{stream} * s_.n_kv_heads + kv_head;
    const float* row = &q[((size_t{stream} * s_.n_queries + query) * n_heads_ + head) * s_.d_k];
    std::vector<int> exact(s_.n_cells, -2);  // -2: by its codes; -1: first row; slot of the ring
    for (const auto& [cell, slot] : exact_cells(stream, query)) exact[cell] = slot;
    std::vector<double> score(s_.n_cells, -std::numeric_limits<double>::infinity());
    double largest = s_.sinks ? static_cast<double>(sinks_[head]) : -std::numeric_limits<double>::infinity();
    for (uint32_t cell = 0; cell < s_.n_cells; ++cell) {
      const uint16_t m = mask_at(stream, query, cell);
      if (m == kRemoved) continue;
      double x = 0;
      for (uint32_t i = 0; i < s_.d_k; ++i) {
        const size_t c = kv_head * s_.d_k + i;
        double k;
        if (exact[cell] == -2) {
          k = static_cast<double>(decoded_k_[(unit * s_.n_cells + cell) * s_.d_k + i]);
          if (s_.conditioned) {
            k = k * static_cast<double>(k_.scale[c]) +
                static_cast<double>(k_.mean_unit(stream, kv_head, cell)) * static_cast<double>(k_.mean_code(stream, kv_head, cell, i));
          }
        } else {
          k = exact[cell] == -1 ? half_at(h_first_k_, unit, s_.n_first, cell, s_.d_k, i)
                                : half_at(h_ring_k_, unit, s_.capacity, static_cast<size_t>(exact[cell]), s_.d_k, i);
        }
        x += static_cast<double>(row[i]) * k;
      }
      x /= std::sqrt(static_cast<double>(s_.d_k));
      if (s_.softcap > 0) x = static_cast<double>(s_.softcap) * std::tanh(x / static_cast<double>(s_.softcap));
      score[cell] = x + (s_.slopes ? static_cast<double>(slopes_[head]) : 1) * half_value(m);
      largest = std::max(largest, score[cell]);
    }
    std::fill(out, out + s_.d_v, 0.0);
    double sum = s_.sinks ? std::exp(static_cast<double>(sinks_[head]) - largest) : 0;
    for (const double x : score) sum += x > -1e300 ? std::exp(x - largest) : 0;
    for (uint32_t cell = 0; cell < s_.n_cells; ++cell) {
      if (!(score[cell] > -1e300)) continue;
      const double weight = std::exp(score[cell] - largest) / sum;
      for (uint32_t i = 0; i < s_.d_v; ++i) {
        out[i] += weight * (exact[cell] == -2   ? static_cast<double>(decoded_v_[(unit * s_.n_cells + cell) * s_.d_v + i])
                            : exact[cell] == -1 ? half_at(h_first_v_, unit, s_.n_first, cell, s_.d_v, i)
                                                : half_at(h_ring_v_, unit, s_.capacity, static_cast<size_t>(exact[cell]), s_.d_v, i));
      }
    }
  }

  const Scene s_;
  const uint32_t n_heads_;
  const size_t mask_pitch_;
  CacheTensor k_, v_;
  DeviceArray<float> q_;
  DeviceArray<uint16_t> d_mask_;
  DeviceArray<float> out_, d_slopes_, d_sinks_;
  std::vector<float> slopes_, sinks_;
  std::unique_ptr<DeviceArray<uint8_t>> step_, workspace_;
  size_t step_bytes_ = 0, workspace_bytes_ = 0;
  uint64_t seed_ = 7000;
  std::vector<uint8_t> h_k_, h_v_;
  std::vector<uint16_t> h_first_k_, h_first_v_, h_ring_k_, h_ring_v_;
  std::vector<int32_t> h_ring_cells_;
  std::vector<uint32_t> h_next_;
  std::vector<float> decoded_k_, decoded_v_;

 public:
  std::vector<uint16_t> mask;  // [n_streams, n_queries, mask_pitch]
};

void check(const Scene& scene) {
  Model model(scene);
  model.fill();
  const std::vector<float> out = model.run();
  const double error = model.check(out), cpu = model.check_cpu(out);
  std::printf("  error %.4f, of kvt_attend %.4f: %s\n", error, cpu, scene.name().c_str());
}

class CudaStep : public CudaTest {};


TEST_F(CudaStep, CodecsAndMasks) {
  for (const kvt_codec_id codec : kCodeCodecs) {
    for (const Mask mask : {Mask::kNone, Mask::kCausal, Mask::kSequences, Mask::kBiases, Mask::kHoles})
      check({.codec = codec, .n_streams = 2, .n_group = 4, .n_queries = 3, .n_cells = 448, .n_filled = 437, .mask = mask});
  }
}

TEST_F(CudaStep, Extras) {
  for (const kvt_codec_id codec : kCodeCodecs) {
    check({.codec = codec, .conditioned = true});
    check({.codec = codec, .n_queries = 2, .mask = Mask::kBiases, .conditioned = true, .slopes = true, .sinks = true});
    check({.codec = codec, .n_queries = 2, .mask = Mask::kSequences, .sinks = true, .softcap = 6});
    check({.codec = codec, .mask = Mask::kNone, .softcap = 6});
    check({.codec = codec, .n_queries = 2, .mask = Mask::kHoles, .conditioned = true, .softcap = 6});
  }
}

// One query row to more than a warp holds; one lane of streams to several.
TEST_F(CudaStep, GroupsAndHeadDims) {
  for (const auto& [d_k, d_v] : {std::pair{64u, 64u}, {128u, 128u}, {256u, 256u}, {192u, 128u}}) {
    for (const auto& [n_group, n_queries] : {std::pair{1u, 1u}, {8u, 1u}, {4u, 4u}, {16u, 8u}}) {
      check({.codec = KVT_CODEC_K4V3,
             .d_k = d_k,
             .d_v = d_v,
             .n_group = n_group,
             .n_queries = n_queries,
             .n_cells = 256,
             .n_filled = 250,
             .mask = n_queries > 1 ? Mask::kSequences : Mask::kCausal});
    }
  }
  check({.n_streams = 9, .n_kv_heads = 1, .n_cells = 128, .n_filled = 120});
}

// No cells, fewer cells than exact rows, cells that end anywhere; windows and rings of all sizes, and none.
TEST_F(CudaStep, Sizes) {
  for (const auto& [n_cells, n_filled] : {std::pair{1u, 1u}, {3u, 3u}, {40u, 40u}, {64u, 64u}, {65u, 65u}, {130u, 100u}, {700u, 699u}})
    check({.n_cells = n_cells, .n_filled = n_filled});
  check({.n_cells = 64, .n_filled = 1, .mask = Mask::kNone});  // empty cells are seen as zeros
  check({.n_first = 0, .capacity = 0, .window = 0});
  check({.n_first = 5, .capacity = 0, .window = 0});
  check({.n_first = 0, .capacity = 56, .window = 48});
  check({.n_first = 64, .capacity = 128, .window = 64});
  check({.n_first = 4, .capacity = 1, .window = 1});
  check({.n_first = 4, .capacity = 56, .window = 0});
  Model empty({.n_cells = 0, .n_filled = 0});
  for (const float x : empty.run()) EXPECT_EQ(x, 0.0f);
}

// Many pages: blocks of the preparation, shares of the attention, pages that are skipped.
TEST_F(CudaStep, LongContexts) {
  for (const kvt_codec_id codec : {KVT_CODEC_SCALAR43, KVT_CODEC_K4V3}) {
    for (const Mask mask : {Mask::kCausal, Mask::kSequences, Mask::kHoles}) {
      check({.codec = codec,
             .n_kv_heads = 1,
             .n_queries = 2,
             .n_cells = 9000,
             .n_filled = 8990,
             .mask = mask,
             .conditioned = mask == Mask::kCausal});
    }
  }
}

// A step without rules gives bit for bit what no step gives.
TEST_F(CudaStep, NoRulesNoDifference) {
  for (const kvt_codec_id codec : kCodeCodecs) {
    Model model({.codec = codec, .n_cells = 640, .n_filled = 640, .mask = Mask::kNone, .n_first = 0, .capacity = 0, .window = 0});
    model.fill();
    const std::vector<float> with_step = model.run();
    kvt_cuda_attention args = model.attend_args();
    args.step = nullptr;
    model.attend(args, nullptr);
    expect_finished();
    const std::vector<float> without = model.out().host();
    EXPECT_EQ(std::memcmp(with_step.data(), without.data(), without.size() * sizeof(float)), 0) << kvt_codec_name(codec);
  }
}

// What no query sees, and the codes of exact cells, may be anything: NaN norms there change nothing.
TEST_F(CudaStep, RemovedCellsDoNotLeak) {
  for (const kvt_codec_id codec : kCodeCodecs) {
    for (const Mask mask : {Mask::kCausal, Mask::kHoles}) {
      Scene scene{.codec = codec, .mask = mask};
      Model model(scene);
      model.fill();
      const std::vector<float> clean = model.run();
      model.check(clean);
      std::set<uint32_t> exact;
      for (const auto& [cell, slot] : model.exact_cells(0, 0)) exact.insert(cell);
      for (CacheTensor* tensor : {&model.k(), &model.v()}) {
        std::vector<uint8_t> pages = tensor->pages.host();
        const TensorShape& t = tensor->shape;
        const size_t n_norms = codec == KVT_CODEC_HYBRID && t.side == KVT_KEY ? 2 : 1;
        for (uint32_t cell = 0; cell < scene.n_cells; ++cell) {
          if (model.mask_at(0, 0, cell) != kRemoved && exact.count(cell) == 0) continue;
          for (uint32_t head = 0; head < t.n_heads; ++head) {
            uint8_t* page = &pages[head * t.head_stride() + cell / 64 * t.page_bytes()];
            for (size_t i = 0; i < n_norms; ++i) page[t.page_bytes() - 128 * (n_norms - i) + cell % 64 * 2 + 1] = 0x7e;
          }
        }
        tensor->pages.set(pages);
      }
      const std::vector<float> poisoned = model.run();
      size_t n_different = 0;
      for (size_t i = 0; i < clean.size(); ++i) n_different += std::memcmp(&clean[i], &poisoned[i], 4) != 0;
      EXPECT_EQ(n_different, 0u) << "of " << clean.size() << " " << scene.name();
    }
  }
}

// A step of an engine as one captured graph: means of runs of cells that begin, new rows, preparation, attention. Rows, cells, mask and
// queries change from one replay to the next; the arguments do not.
TEST_F(CudaStep, GraphReplay) {
  for (const kvt_codec_id codec : kCodeCodecs) {
    const Scene scene{.codec = codec, .n_streams = 2, .n_queries = 2, .n_cells = 448, .n_filled = 370, .conditioned = true};
    Model model(scene);
    const uint32_t n_means = model.k().shape.n_means(), new_run = 384 / model.k().shape.mean_cells;
    for (size_t run = new_run; run < model.k().units.size(); run += n_means) {
      model.k().units[run] = -1;
      std::fill_n(&model.k().means[run * scene.d_k], scene.d_k, int8_t{0});
    }
    model.k().d_units.set(model.k().units);
    model.k().d_means.set(model.k().means);
    model.fill();
    const uint32_t n = scene.n_streams * scene.n_queries;
    DeviceArray<float> k(model.random_rows(n, scene.d_k)), v(model.random_rows(n, scene.d_v));
    DeviceArray<int64_t> cells(std::vector<int64_t>(n, -1));
    model.encode(k.get(), v.get(), cells.get(), n, nullptr);  // loads the kernels
    model.run();
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    KVT_CUDA_OK(cudaStreamCreate(&stream));
    KVT_CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    model.encode(k.get(), v.get(), cells.get(), n, stream);
    model.launch(stream);
    KVT_CUDA_OK(cudaStreamEndCapture(stream, &graph));
    KVT_CUDA_OK(cudaGraphInstantiate(&executable, graph, 0));
    for (uint32_t step = 0; step < 30; ++step) {
      // Two tokens a stream; the second of a step is a draft that the next step overwrites, and stream 1 rests at times.
      std::vector<int64_t> next(n);
      for (uint32_t s = 0; s < scene.n_streams; ++s) {
        for (uint32_t j = 0; j < scene.n_queries; ++j) {
          const uint32_t cell = scene.n_filled + step + j;
          next[s * scene.n_queries + j] = s == 1 && step % 5 == 3 ? -1 : model.place(s, cell);
          for (uint32_t c = 0; c < scene.n_cells; ++c) model.mask_at(s, j, c) = c <= cell ? 0 : kRemoved;
        }
      }
      cells.set(next);
      k.set(model.random_rows(n, scene.d_k));
      v.set(model.random_rows(n, scene.d_v));
      model.upload_mask();
      model.set_queries(900 + step);
      KVT_CUDA_OK(cudaGraphLaunch(executable, stream));
      KVT_CUDA_OK(cudaStreamSynchronize(stream));
      if (step % 4 == 0) {
        const std::vector<float> out = model.out().host();
        model.check(out);
        model.check_cpu(out);
      }
    }
    for (size_t run = new_run; run < model.k().units.size(); run += n_means) EXPECT_GT(model.k().units[run], 0.0f);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

TEST_F(CudaStep, RefusesBadArguments) {
  Model model({.n_cells = 64, .n_filled = 64});
  DeviceArray<uint8_t> memory(1 << 20);
  const auto prepare = [&](auto change) {
    kvt_cuda_step_args args = model.step_args();
    change(args);
    return kvt_cuda_prepare_step(&args, memory.get(), 1 << 20, nullptr);
  };
  EXPECT_EQ(prepare([](auto&) {}), KVT_OK);
  EXPECT_EQ(prepare([](auto& a) { a.struct_size = 4; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(prepare([](auto& a) { a.n_queries = 9; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(prepare([](auto& a) { a.window = a.capacity + 1; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(prepare([](auto& a) { a.ring_cells = nullptr; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(prepare([](auto& a) { a.n_cells = 1u << 30; }), KVT_ERROR_DST_TOO_SMALL);
  const auto attend = [&](auto change) {
    kvt_cuda_attention args = model.attend_args();
    change(args);
    return kvt_cuda_attend(&args, memory.get(), 1 << 20, nullptr);
  };
  const int32_t length = 1;
  EXPECT_EQ(attend([&](auto& a) { a.lengths = &length; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(attend([](auto& a) { a.causal = 1; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(attend([](auto& a) { a.exact_v = nullptr; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(attend([](auto& a) { a.recent_window = 65; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(attend([](auto& a) { a.step = nullptr; }), KVT_ERROR_INVALID_ARGUMENT);  // a window needs a step
  EXPECT_EQ(attend([](auto& a) { a.codec = KVT_CODEC_F16; }), KVT_ERROR_INVALID_ARGUMENT);
  expect_finished();
}

}  // namespace
}  // namespace kvt_test
