// kvt_cuda_attend against softmax attention in double precision over the values that kvt_decode gives.
//
// Error of a call = |out - reference| / size over all its rows, size = sqrt(sum_t p_t^2 |v_t|^2) as in attention_test.cc (cells
// of a page that a stream reads several times count as one, with the sum of their weights). Bounds, where s is the deviation of
// the scores:
//   f16:      0.002 + 0.001 s: fp16 queries and weights, 2^-11 each.
//   the rest: 0.01 + 0.01 s: weights in steps of 1/255 of the largest of their page (0.9 % of size at worst), int8 queries in
//   steps of 1/127
//             of their largest coordinate (0.6 % of s for Gaussian queries, a third more in unlucky rows). 0.02 for s = 1.
// One row may err by twice that.

#include <algorithm>
#include <map>

#include "cuda_support.h"

namespace kvt_test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr uint32_t kPoolPages = 24, kMeanCells = 64;

struct Case {
  kvt_codec_id codec = KVT_CODEC_HYBRID;
  uint32_t d_k = 128, d_v = 128;
  uint32_t n_kv_heads = 2, n_group = 1, n_queries = 1;
  std::vector<int32_t> lengths = {200};
  bool table = true;  // else each stream has its own pages, in order
  bool causal = false, mask = false, slopes = false, sinks = false, key_scale = false;
  uint32_t n_exact = 0;
  float softcap = 0, score_deviation = 1;
  kvt_cuda_type type = KVT_CUDA_F32;
  uint32_t extra_cells = 0;                    // max_cells above the longest stream
  std::vector<uint32_t> checked_streams = {};  // empty: all

  std::string name() const {
    std::string text = kvt_codec_name(codec);
    const std::pair<const char*, uint32_t> fields[] = {
        {" dk ", d_k},        {" dv ", d_v},    {" heads ", n_kv_heads}, {" group ", n_group}, {" queries ", n_queries},
        {" causal ", causal}, {" mask ", mask}, {" sinks ", sinks},      {" exact ", n_exact}};
    for (const auto& [label, value] : fields) text.append(label).append(std::to_string(value));
    text.append(" lengths");
    for (const int32_t n : lengths) text.append(" ").append(std::to_string(n));
    return text;
  }
};

// fp32 -> the type and back, as the kernels see q and we see out.
uint16_t to_bfloat(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
float from_bfloat(uint16_t b) {
  const uint32_t bits = static_cast<uint32_t>(b) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
// By the library: f16 cells, in rows of 64.
std::vector<uint16_t> to_halves(const std::vector<float>& x) {
  const CodecPtr codec = make_codec(KVT_CODEC_F16, 64, 64);
  std::vector<float> rows = x;
  rows.resize((x.size() + 63) / 64 * 64);
  const std::vector<uint8_t> pages = encode_rows(codec.get(), KVT_KEY, rows, 64);
  std::vector<uint16_t> halves(x.size());
  std::memcpy(halves.data(), pages.data(), halves.size() * 2);
  return halves;
}

// Pages of a pool for one side, and what they decode to: [page][head][slot][d].
struct Pool {
  std::vector<uint8_t> pages;
  std::vector<float> decoded;
  size_t page_bytes, head_stride, page_stride;
};
// Made once for each kind of pool: encoding on the CPU is the slow part.
const Pool& pool_of(kvt_codec_id codec_id, kvt_side side, uint32_t d, uint32_t n_heads) {
  static std::map<std::tuple<int, int, uint32_t, uint32_t>, Pool> pools;
  Pool& pool = pools[{codec_id, side, d, n_heads}];
  if (!pool.pages.empty()) return pool;
  const CodecPtr codec = make_codec(codec_id, d, d);
  pool.page_bytes = kvt_page_bytes(codec.get(), side);
  pool.head_stride = pool.page_bytes + 32;
  pool.page_stride = n_heads * pool.head_stride + 48;
  pool.pages.assign(kPoolPages * pool.page_stride, 0xC3);
  pool.decoded.resize(size_t{kPoolPages} * n_heads * 64 * d);
  const std::vector<float> rows = gaussian_rows(31 + side, size_t{kPoolPages} * n_heads * 64, d);
  const std::vector<int64_t> cells = cells_from(0, 64);
  for (uint32_t page = 0; page < kPoolPages; ++page) {
    for (uint32_t head = 0; head < n_heads; ++head) {
      uint8_t* at = &pool.pages[page * pool.page_stride + head * pool.head_stride];
      const size_t first = (size_t{page} * n_heads + head) * 64 * d;
      std::fill(at, at + pool.page_bytes, uint8_t{0});
      EXPECT_EQ(kvt_encode(codec.get(), side, &rows[first], d, 64, cells.data(), at, pool.page_bytes), KVT_OK);
      EXPECT_EQ(kvt_decode(codec.get(), side, at, pool.page_bytes, 0, 64, &pool.decoded[first], d), KVT_OK);
    }
  }
  return pool;
}

class Problem {
 public:
  explicit Problem(const Case& c)
      : c_(c),
        n_heads_(c.n_kv_heads * c.n_group),
        n_streams_(static_cast<uint32_t>(c.lengths.size())),
        max_cells_(static_cast<uint32_t>(std::max(0, *std::max_element(c.lengths.begin(), c.lengths.end()))) + c.extra_cells),
        n_table_(static_cast<uint32_t>(pages_for(max_cells_)) + 1),
        k_(pool_of(c.codec, KVT_KEY, c.d_k, c.n_kv_heads)),
        v_(pool_of(c.codec, KVT_VALUE, c.d_v, c.n_kv_heads)),
        table_(make_table()),
        k_pages_(k_.pages),
        v_pages_(v_.pages),
        d_table_(table_),
        lengths_(c.lengths) {
    const size_t n_rows = size_t{n_streams_} * c.n_queries * n_heads_;
    q_ = gaussian_rows(33, n_rows, c.d_k, c.score_deviation);
    if (c.type == KVT_CUDA_F32) {
      q_bytes_ = bytes_of(q_);
    } else {
      std::vector<uint16_t> typed = to_halves(q_);
      for (size_t i = 0; i < q_.size(); ++i) {
        if (c.type == KVT_CUDA_BF16) typed[i] = to_bfloat(q_[i]);
        q_[i] = c.type == KVT_CUDA_BF16 ? from_bfloat(typed[i]) : static_cast<float>(half_value(typed[i]));
      }
      q_bytes_ = bytes_of(typed);
    }
    element_bytes_ = c.type == KVT_CUDA_F32 ? 4 : 2;
    d_q_ = std::make_unique<DeviceArray<uint8_t>>(q_bytes_);
    out_pitch_ = c.d_v + 8;
    d_out_ = std::make_unique<DeviceArray<uint8_t>>(n_rows * out_pitch_ * element_bytes_);
    make_extras();
    fill_args();
  }

  kvt_cuda_attention& args() { return args_; }
  DeviceArray<uint8_t>& k_pages() { return k_pages_; }
  DeviceArray<uint8_t>& v_pages() { return v_pages_; }
  DeviceArray<uint8_t>& workspace() {
    if (workspace_ == nullptr) {
      workspace_bytes_ = kvt_cuda_attend_workspace_bytes(&args_);
      EXPECT_GT(workspace_bytes_, 0u);
      workspace_ = std::make_unique<DeviceArray<uint8_t>>(workspace_bytes_);
      workspace_->fill_bytes(0xff);  // NaN
    }
    return *workspace_;
  }
  size_t workspace_bytes() {
    workspace();
    return workspace_bytes_;
  }
  // A NaN in the first query row, which is fp32.
  void poison_query() {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(q_bytes_.data(), &nan, sizeof nan);
    d_q_->set(q_bytes_);
  }
  kvt_status launch(cudaStream_t stream) { return kvt_cuda_attend(&args_, workspace().get(), workspace_bytes(), stream); }

  std::vector<float> result() {
    const std::vector<uint8_t> bytes = d_out_->host();
    const size_t n = bytes.size() / element_bytes_;
    std::vector<float> out(n);
    for (size_t i = 0; i < n; ++i) {
      if (element_bytes_ == 4) {
        std::memcpy(&out[i], &bytes[4 * i], 4);
      } else {
        uint16_t h;
        std::memcpy(&h, &bytes[2 * i], 2);
        out[i] = c_.type == KVT_CUDA_BF16 ? from_bfloat(h) : static_cast<float>(half_value(h));
      }
    }
    return out;
  }
  std::vector<float> run() {
    d_out_->fill_bytes(0xff);
    EXPECT_EQ(launch(nullptr), KVT_OK);
    expect_finished();
    return result();
  }

  double check(const std::vector<float>& out) {
    const double deviation = static_cast<double>(c_.score_deviation);
    const double type_error = c_.type == KVT_CUDA_F32 ? 0 : c_.type == KVT_CUDA_F16 ? 5e-4 : 4e-3;
    const double bound = (c_.codec == KVT_CODEC_F16 ? 0.002 + 0.001 * deviation : 0.01 + 0.01 * deviation) + type_error;
    double error_sum = 0, size_sum = 0;
    std::vector<double> reference(c_.d_v);
    for (uint32_t s = 0; s < n_streams_; ++s) {
      if (!c_.checked_streams.empty() && std::count(c_.checked_streams.begin(), c_.checked_streams.end(), s) == 0) continue;
      for (uint32_t query = 0; query < c_.n_queries; ++query) {
        for (uint32_t head = 0; head < n_heads_; ++head) {
          const double size = reference_row(s, query, head, reference.data());
          const float* row = &out[((size_t{s} * c_.n_queries + query) * n_heads_ + head) * out_pitch_];
          double error = 0;
          for (uint32_t i = 0; i < c_.d_v; ++i) {
            const double e = static_cast<double>(row[i]) - reference[i];
            error += e * e;
          }
          if (size == 0 ? error != 0 : !(error <= 4 * bound * bound * size)) {
            ADD_FAILURE() << c_.name() << ": stream " << s << " query " << query << " head " << head << " errs by "
                          << std::sqrt(error / size);
            return kInfinity;
          }
          error_sum += error;
          size_sum += size;
        }
      }
    }
    const double error = size_sum > 0 ? std::sqrt(error_sum / size_sum) : 0;
    EXPECT_LE(error, bound) << c_.name();
    for (size_t row = 0; row < out.size() / out_pitch_; ++row) {
      for (size_t i = c_.d_v; i < out_pitch_; ++i) EXPECT_TRUE(std::isnan(out[row * out_pitch_ + i])) << "written beyond a row";
    }
    return error;
  }

  uint32_t page_of(uint32_t stream, uint32_t cell) const {
    return static_cast<uint32_t>(table_[stream * n_table_ + cell / 64]);
  }
  const Case& shape() const { return c_; }
  void set_length(uint32_t stream, int32_t length) {
    c_.lengths[stream] = length;
    lengths_.set(c_.lengths);
  }

 private:
  template <class T>
  static std::vector<uint8_t> bytes_of(const std::vector<T>& values) {
    std::vector<uint8_t> bytes(values.size() * sizeof(T));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
  }

  std::vector<int32_t> make_table() const {
    std::vector<int32_t> table(size_t{n_streams_} * n_table_);
    for (uint32_t s = 0; s < n_streams_; ++s) {
      for (uint32_t p = 0; p < n_table_; ++p) {
        table[s * n_table_ + p] =
            static_cast<int32_t>(c_.table ? splitmix64(34, s * n_table_ + p) % kPoolPages : (s + p) % kPoolPages);
      }
    }
    return table;
  }

  void make_extras() {
    mask_pitch_ = max_cells_ + 3;
    if (c_.mask) {
      const uint16_t choices[] = {0xFC00, half_bits_exact(0), half_bits_exact(-0.75), half_bits_exact(0.5), half_bits_exact(-3),
                                  0xFC00};
      mask_.resize(size_t{n_streams_} * n_heads_ * c_.n_queries * mask_pitch_);
      for (size_t i = 0; i < mask_.size(); ++i) mask_[i] = choices[splitmix64(35, i) % std::size(choices)];
      if (c_.n_queries > 1) {  // the first query of the first head sees nothing
        for (size_t cell = 0; cell < mask_pitch_; ++cell) mask_[cell] = 0xFC00;
      }
      d_mask_ = std::make_unique<DeviceArray<uint16_t>>(mask_);
    }
    for (uint32_t h = 0; h < n_heads_; ++h) {
      slopes_.push_back(std::ldexp(1.0f, -static_cast<int>(h % 5)));
      sinks_.push_back(h % 4 == 3 ? -std::numeric_limits<float>::infinity() : static_cast<float>(h % 7) - 2.0f);
    }
    d_slopes_ = std::make_unique<DeviceArray<float>>(slopes_);
    d_sinks_ = std::make_unique<DeviceArray<float>>(sinks_);
    for (size_t i = 0; i < size_t{c_.n_kv_heads} * c_.d_k; ++i)
      key_scale_.push_back(0.5f + static_cast<float>(splitmix64(36, i) % 100) / 80.0f);
    d_key_scale_ = std::make_unique<DeviceArray<float>>(key_scale_);
    n_means_ = (max_cells_ + kMeanCells - 1) / kMeanCells;
    for (size_t i = 0; i < size_t{n_streams_} * c_.n_kv_heads * n_means_; ++i)  // every 7th run has no mean
      mean_unit_.push_back(i % 7 == 3 ? -1.0f : 0.004f + static_cast<float>(splitmix64(41, i) % 64) / 10000.0f);
    for (size_t i = 0; i < mean_unit_.size() * c_.d_k; ++i)
      key_mean_.push_back(mean_unit_[i / c_.d_k] < 0 ? int8_t{0} : static_cast<int8_t>(splitmix64(40, i) % 255 - 127));
    d_key_mean_ = std::make_unique<DeviceArray<int8_t>>(key_mean_);
    d_mean_unit_ = std::make_unique<DeviceArray<float>>(mean_unit_);
    if (c_.n_exact > 0) {
      const size_t n = size_t{n_streams_} * c_.n_kv_heads * c_.n_exact;
      exact_k_ = to_halves(gaussian_rows(37, n, c_.d_k));
      exact_v_ = to_halves(gaussian_rows(38, n, c_.d_v));
      d_exact_k_ = std::make_unique<DeviceArray<uint16_t>>(exact_k_);
      d_exact_v_ = std::make_unique<DeviceArray<uint16_t>>(exact_v_);
    }
  }

  void fill_args() {
    kvt_cuda_attention& a = args_;
    a.struct_size = sizeof a;
    a.codec = c_.codec;
    a.head_dim_k = c_.d_k;
    a.head_dim_v = c_.d_v;
    a.n_streams = n_streams_;
    a.n_kv_heads = c_.n_kv_heads;
    a.n_group = c_.n_group;
    a.n_queries = c_.n_queries;
    a.max_cells = max_cells_;
    a.lengths = lengths_.get();
    a.causal = c_.causal;
    a.page_table = c_.table ? d_table_.get() : nullptr;
    a.page_table_stride = c_.table ? n_table_ : 0;
    a.k_pages = k_pages_.get();
    a.k_page_stride = k_.page_stride;
    a.k_head_stride = k_.head_stride;
    a.k_stream_stride = c_.table ? 0 : k_.page_stride;  // stream s begins at page s of the pool
    a.v_pages = v_pages_.get();
    a.v_page_stride = v_.page_stride;
    a.v_head_stride = v_.head_stride;
    a.v_stream_stride = c_.table ? 0 : v_.page_stride;
    a.q_type = a.out_type = c_.type;
    a.q = d_q_->get();
    a.q_head_stride = c_.d_k * element_bytes_;
    a.q_query_stride = n_heads_ * a.q_head_stride;
    a.q_stream_stride = c_.n_queries * a.q_query_stride;
    if (c_.mask) {
      a.mask = d_mask_->get();
      a.mask_query_stride = mask_pitch_ * 2;
      a.mask_head_stride = c_.n_queries * a.mask_query_stride;
      a.mask_stream_stride = n_heads_ * a.mask_head_stride;
    }
    if (c_.slopes) a.slopes = d_slopes_->get();
    if (c_.sinks) a.sinks = d_sinks_->get();
    a.scale = 1.0f / std::sqrt(static_cast<float>(c_.d_k));
    a.logit_softcap = c_.softcap;
    a.out = d_out_->get();
    a.out_head_stride = out_pitch_ * element_bytes_;
    a.out_query_stride = n_heads_ * a.out_head_stride;
    a.out_stream_stride = c_.n_queries * a.out_query_stride;
    if (c_.key_scale) a.key_scale = d_key_scale_->get();
    a.key_scale_head_stride = c_.d_k * sizeof(float);
    if (c_.key_scale) {
      a.key_mean = d_key_mean_->get();
      a.key_mean_head_stride = size_t{n_means_} * c_.d_k;
      a.key_mean_stream_stride = c_.n_kv_heads * a.key_mean_head_stride;
      a.key_mean_unit = d_mean_unit_->get();
      a.key_mean_unit_head_stride = n_means_ * sizeof(float);
      a.key_mean_unit_stream_stride = c_.n_kv_heads * a.key_mean_unit_head_stride;
      a.mean_cells = kMeanCells;
    }
    if (c_.n_exact > 0) {
      fill_exact(&exact_rows_k_, *d_exact_k_, c_.d_k);
      fill_exact(&exact_rows_v_, *d_exact_v_, c_.d_v);
      a.exact_k = &exact_rows_k_;
      a.exact_v = &exact_rows_v_;
    }
  }

  void fill_exact(kvt_cuda_exact_rows* rows, const DeviceArray<uint16_t>& first, uint32_t d) const {
    rows->struct_size = sizeof *rows;
    rows->n_streams = n_streams_;
    rows->n_first = c_.n_exact;
    rows->first = first.get();
    rows->first_head_stride = c_.n_exact * d * 2;
    rows->first_stream_stride = c_.n_kv_heads * rows->first_head_stride;
  }

  // Element i of a cell's row: decoded, or raw if it is exact.
  double element(const Pool& pool, const std::vector<uint16_t>& exact, uint32_t d, uint32_t s, uint32_t head, uint32_t cell,
                 uint32_t i) const {
    if (cell < c_.n_exact) return half_value(exact[((size_t{s} * c_.n_kv_heads + head) * c_.n_exact + cell) * d + i]);
    return static_cast<double>(pool.decoded[((size_t{page_of(s, cell)} * c_.n_kv_heads + head) * 64 + cell % 64) * d + i]);
  }

  // Writes the exact output; returns the square of its size.
  double reference_row(uint32_t s, uint32_t query, uint32_t head, double* out) const {
    const uint32_t kv_head = head / c_.n_group;
    const float* q = &q_[((size_t{s} * c_.n_queries + query) * n_heads_ + head) * c_.d_k];
    const int32_t end = std::max(0, c_.lengths[s] - (c_.causal ? static_cast<int32_t>(c_.n_queries - 1 - query) : 0));
    std::vector<double> score(static_cast<size_t>(end), -kInfinity);
    double largest = c_.sinks ? static_cast<double>(sinks_[head]) : -kInfinity;
    for (uint32_t cell = 0; cell < static_cast<uint32_t>(end); ++cell) {
      const double mask =
          c_.mask ? half_value(mask_[((size_t{s} * n_heads_ + head) * c_.n_queries + query) * mask_pitch_ + cell]) : 0;
      if (mask == -kInfinity) continue;
      double x = 0;
      for (uint32_t i = 0; i < c_.d_k; ++i) {
        const bool is_coded = cell >= c_.n_exact;
        const double scale = static_cast<double>(c_.key_scale && is_coded ? key_scale_[kv_head * c_.d_k + i] : 1.0f);
        const size_t run = (size_t{s} * c_.n_kv_heads + kv_head) * n_means_ + cell / kMeanCells;
        const double mean =
            c_.key_scale && is_coded ? std::max(0.0, static_cast<double>(mean_unit_[run])) * static_cast<double>(key_mean_[run * c_.d_k + i]) : 0.0;
        x += static_cast<double>(q[i]) * (scale * element(k_, exact_k_, c_.d_k, s, kv_head, cell, i) + mean);
      }
      x *= static_cast<double>(args_.scale);
      if (c_.softcap > 0) x = static_cast<double>(c_.softcap) * std::tanh(x / static_cast<double>(c_.softcap));
      score[cell] = x + (c_.slopes ? static_cast<double>(slopes_[head]) : 1) * mask;
      largest = std::max(largest, score[cell]);
    }
    std::fill(out, out + c_.d_v, 0.0);
    double sum = c_.sinks && largest > -kInfinity ? std::exp(static_cast<double>(sinks_[head]) - largest) : 0, size = 0;
    for (const double x : score) sum += x > -kInfinity ? std::exp(x - largest) : 0;
    std::map<uint32_t, std::pair<double, uint32_t>> weights;  // of each different row: by slot of the pool, or by exact cell
    for (uint32_t cell = 0; cell < static_cast<uint32_t>(end); ++cell) {
      if (score[cell] == -kInfinity) continue;
      auto& [weight, example] = weights[cell < c_.n_exact ? kPoolPages * 64 + cell : page_of(s, cell) * 64 + cell % 64];
      weight += std::exp(score[cell] - largest) / sum;
      example = cell;
    }
    for (const auto& [row, entry] : weights) {
      const auto& [weight, cell] = entry;
      for (uint32_t i = 0; i < c_.d_v; ++i) {
        const double v = element(v_, exact_v_, c_.d_v, s, kv_head, cell, i);
        out[i] += weight * v;
        size += weight * weight * v * v;
      }
    }
    return size;
  }

  Case c_;
  uint32_t n_heads_, n_streams_, max_cells_, n_table_;
  const Pool &k_, &v_;
  std::vector<int32_t> table_;
  DeviceArray<uint8_t> k_pages_, v_pages_;
  DeviceArray<int32_t> d_table_, lengths_;
  std::vector<float> q_, slopes_, sinks_, key_scale_, mean_unit_;
  std::vector<int8_t> key_mean_;
  uint32_t n_means_ = 0;
  std::vector<uint8_t> q_bytes_;
  std::vector<uint16_t> mask_, exact_k_, exact_v_;
  size_t element_bytes_ = 4, out_pitch_ = 0, mask_pitch_ = 0, workspace_bytes_ = 0;
  std::unique_ptr<DeviceArray<uint8_t>> d_q_, d_out_, workspace_;
  std::unique_ptr<DeviceArray<uint16_t>> d_mask_, d_exact_k_, d_exact_v_;
  std::unique_ptr<DeviceArray<float>> d_slopes_, d_sinks_, d_key_scale_, d_mean_unit_;
  std::unique_ptr<DeviceArray<int8_t>> d_key_mean_;
  kvt_cuda_exact_rows exact_rows_k_{}, exact_rows_v_{};
  kvt_cuda_attention args_{};
};

double check(const Case& c) {
  Problem problem(c);
  return problem.check(problem.run());
}

constexpr std::pair<uint32_t, uint32_t> kDims[] = {{64, 64}, {128, 128}, {256, 256}, {192, 128}};

class CudaAttend : public CudaTest {};

TEST_F(CudaAttend, CodecsAndHeadDims) {
  for (const kvt_codec_id codec : kCudaCodecs) {
    for (const auto& [d_k, d_v] : kDims) {
      const double error =
          check({.codec = codec, .d_k = d_k, .d_v = d_v, .n_kv_heads = 3, .n_group = 4, .lengths = {1000, 640, 65}});
      std::printf("  %-9s d %3u/%-3u  error %.4f\n", kvt_codec_name(codec), d_k, d_v, error);
    }
  }
}

// Empty, one cell, either side of a page and of a 32-token group; more streams than a warp has lanes.
TEST_F(CudaAttend, Lengths) {
  std::vector<int32_t> many(70);
  for (size_t i = 0; i < many.size(); ++i) many[i] = static_cast<int32_t>(splitmix64(39, i) % 150);
  many[3] = many[40] = 0;
  for (const kvt_codec_id codec : kCudaCodecs) {
    check({.codec = codec, .lengths = {0}});
    check({.codec = codec, .lengths = {0, 1, 31, 32, 33, 63, 64, 65, 0, 127, 128, 129, 0}, .extra_cells = 100});
    check({.codec = codec, .n_group = 2, .lengths = many});
    check({.codec = codec, .d_k = 64, .d_v = 64, .lengths = {1, 2, 3}, .table = false});
    check({.codec = codec, .n_kv_heads = 1, .lengths = {700, 12}, .table = false});
  }
}

TEST_F(CudaAttend, GroupsAndQueries) {
  for (const kvt_codec_id codec : kCudaCodecs) {
    for (const auto& [n_group, n_queries] :
         {std::pair{1u, 1u}, {3u, 1u}, {8u, 1u}, {16u, 1u}, {1u, 8u}, {4u, 4u}, {5u, 3u}, {8u, 4u}, {16u, 8u}}) {
      for (const auto& [d_k, d_v] : kDims) {
        check({.codec = codec,
               .d_k = d_k,
               .d_v = d_v,
               .n_group = n_group,
               .n_queries = n_queries,
               .lengths = {330, 70, 3},
               .causal = true});
      }
    }
  }
}

// More runs of cells than a block holds the means of at a time; units end in the middle of shares.
TEST_F(CudaAttend, ManyMeans) {
  for (const kvt_codec_id codec : kCodeCodecs) {
    for (const auto& [n_group, n_queries] : {std::pair{1u, 1u}, {4u, 3u}, {16u, 8u}}) {
      std::vector<int32_t> lengths(32, 24000);
      lengths[3] = 23017;
      check({.codec = codec,
             .n_kv_heads = 1,
             .n_group = n_group,
             .n_queries = n_queries,
             .lengths = lengths,
             .causal = true,
             .key_scale = true,
             .n_exact = 4,
             .checked_streams = {3}});
    }
  }
}

TEST_F(CudaAttend, MasksAndExtras) {
  for (const kvt_codec_id codec : kCudaCodecs) {
    const bool code = codec != KVT_CODEC_F16;
    check({.codec = codec, .n_group = 4, .n_queries = 3, .lengths = {300, 64}, .mask = true});
    check({.codec = codec, .n_group = 4, .lengths = {300, 64}, .mask = true, .slopes = true, .sinks = true});
    check({.codec = codec, .n_group = 5, .lengths = {300, 0, 64}, .sinks = true, .softcap = 5});
    check({.codec = codec,
           .n_group = 4,
           .n_queries = 4,
           .lengths = {300, 64},
           .causal = true,
           .key_scale = code,
           .n_exact = code ? 4u : 0u});
    check({.codec = codec, .n_group = 2, .lengths = {300, 64, 5, 40}, .mask = true, .n_exact = code ? 64u : 0u, .softcap = 8});
    check({.codec = codec, .d_k = 192, .lengths = {300, 64}, .sinks = true, .key_scale = code, .n_exact = code ? 7u : 0u});
    check({.codec = codec,
           .d_k = 256,
           .d_v = 256,
           .n_group = 12,
           .lengths = {300, 64},
           .mask = true,
           .n_exact = code ? 33u : 0u});
    check(
        {.codec = codec, .d_k = 64, .d_v = 64, .n_group = 12, .lengths = {300, 64}, .mask = true, .n_exact = code ? 33u : 0u});
  }
}

TEST_F(CudaAttend, SharpScores) {
  for (const kvt_codec_id codec : kCudaCodecs) check({.codec = codec, .n_group = 8, .lengths = {1500, 500}, .score_deviation = 4});
}

TEST_F(CudaAttend, Types) {
  for (const kvt_codec_id codec : kCudaCodecs) {
    for (const kvt_cuda_type type : {KVT_CUDA_F16, KVT_CUDA_BF16})
      check({.codec = codec, .n_group = 4, .lengths = {500, 90}, .type = type});
  }
}

// Enough pages for the larger blocks, and shares that begin and end anywhere. One stream in a few is compared.
TEST_F(CudaAttend, LongContexts) {
  for (const kvt_codec_id codec : kCudaCodecs) {
    check({.codec = codec, .n_kv_heads = 8, .n_group = 2, .lengths = std::vector<int32_t>(4, 50000), .checked_streams = {2}});
    std::vector<int32_t> lengths(24, 16000);
    lengths[5] = 60000;
    lengths[11] = 0;
    check({.codec = codec, .n_kv_heads = 8, .n_group = 1, .lengths = lengths, .checked_streams = {0, 11, 23}});
    check({.codec = codec,
           .n_kv_heads = 8,
           .n_group = 4,
           .n_queries = 4,
           .lengths = lengths,
           .causal = true,
           .checked_streams = {1}});
  }
}

TEST_F(CudaAttend, SameResultTwice) {
  for (const kvt_codec_id codec : kCudaCodecs) {
    Problem problem({.codec = codec, .n_group = 4, .lengths = {3000, 1000, 77}});
    const std::vector<float> first = problem.run(), second = problem.run();
    EXPECT_EQ(std::memcmp(first.data(), second.data(), first.size() * sizeof(float)), 0) << problem.shape().name();
  }
}

// What lies beyond the length, and below the exact rows, may be anything: NaN norms there change nothing.
TEST_F(CudaAttend, RemovedCellsDoNotLeak) {
  for (const kvt_codec_id codec : kCudaCodecs) {
    const bool code = codec != KVT_CODEC_F16;
    Problem problem({.codec = codec, .n_kv_heads = 1, .lengths = {100}, .n_exact = code ? 3u : 0u});
    const std::vector<float> clean = problem.run();
    std::vector<uint8_t> k = problem.k_pages().host(), v = problem.v_pages().host();
    const auto poison = [&](std::vector<uint8_t>& pages, const size_t page_stride, size_t page_bytes, size_t parts,
                            uint32_t cell) {
      uint8_t* page = &pages[problem.page_of(0, cell) * page_stride];
      if (!code) {
        for (uint32_t i = 0; i < 128; ++i) page[cell % 64 * 256 + 2 * i + 1] = 0x7e;
      } else {
        for (size_t part = 0; part < parts; ++part) page[page_bytes - 128 * (parts - part) + cell % 64 * 2 + 1] = 0x7e;
      }
    };
    for (uint32_t cell = 0; cell < 128; ++cell) {
      if (cell >= problem.shape().n_exact && cell < 100) continue;
      if (problem.page_of(0, 0) == problem.page_of(0, 64)) break;  // one page twice: its cells are seen
      poison(k, problem.args().k_page_stride, kvt_page_bytes_for(codec, KVT_KEY, 128), codec == KVT_CODEC_HYBRID ? 2 : 1, cell);
      poison(v, problem.args().v_page_stride, kvt_page_bytes_for(codec, KVT_VALUE, 128), 1, cell);
    }
    ASSERT_NE(problem.page_of(0, 0), problem.page_of(0, 64));
    problem.k_pages().set(k);
    problem.v_pages().set(v);
    const std::vector<float> poisoned = problem.run();
    EXPECT_EQ(std::memcmp(clean.data(), poisoned.data(), clean.size() * sizeof(float)), 0) << kvt_codec_name(codec);
    // A cell that is seen does leak, as in fp16.
    poison(v, problem.args().v_page_stride, kvt_page_bytes_for(codec, KVT_VALUE, 128), 1, 20);
    problem.v_pages().set(v);
    EXPECT_TRUE(std::isnan(problem.run()[0])) << kvt_codec_name(codec);
  }
}

TEST_F(CudaAttend, NanQueriesGiveNan) {
  for (const kvt_codec_id codec : kCudaCodecs) {
    Problem problem({.codec = codec, .n_group = 2, .lengths = {300}});
    const std::vector<float> clean = problem.run();
    problem.poison_query();
    const std::vector<float> out = problem.run();
    const size_t pitch = out.size() / 4;  // two kv heads, a group of two
    EXPECT_TRUE(std::isnan(out[0]) && std::isnan(out[127])) << kvt_codec_name(codec);
    EXPECT_EQ(std::memcmp(&clean[pitch], &out[pitch], 128 * sizeof(float)), 0) << kvt_codec_name(codec);
  }
}

// Captured once, replayed with other lengths.
TEST_F(CudaAttend, GraphReplay) {
  for (const kvt_codec_id codec : kCudaCodecs) {
    Problem problem({.codec = codec, .n_group = 4, .lengths = {900, 333, 64}});
    const std::vector<float> before = problem.run();
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    KVT_CUDA_OK(cudaStreamCreate(&stream));
    KVT_CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    EXPECT_EQ(problem.launch(stream), KVT_OK);
    KVT_CUDA_OK(cudaStreamEndCapture(stream, &graph));
    KVT_CUDA_OK(cudaGraphInstantiate(&executable, graph, 0));
    for (const int32_t length : {900, 1, 0, 580}) {
      problem.set_length(0, length);
      KVT_CUDA_OK(cudaGraphLaunch(executable, stream));
      KVT_CUDA_OK(cudaStreamSynchronize(stream));
      problem.check(problem.result());
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

TEST_F(CudaAttend, RefusesBadArguments) {
  Problem problem({.lengths = {10}});
  const auto status = [&](auto change) {
    kvt_cuda_attention args = problem.args();
    change(args);
    return kvt_cuda_attend(&args, problem.workspace().get(), problem.workspace_bytes(), nullptr);
  };
  EXPECT_EQ(status([](auto&) {}), KVT_OK);
  EXPECT_EQ(status([](auto& a) { a.struct_size = 4; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](auto& a) { a.codec = static_cast<kvt_codec_id>(99); }), KVT_ERROR_UNKNOWN_CODEC);
  EXPECT_EQ(status([](auto& a) { a.head_dim_v = 64; }), KVT_ERROR_HEAD_DIM);
  EXPECT_EQ(status([](auto& a) { a.n_group = 17; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](auto& a) { a.n_queries = 9; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](auto& a) { a.q = nullptr; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](auto& a) { a.scale = -1; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](auto& a) { a.k_pages = static_cast<const char*>(a.k_pages) + 4; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](auto& a) { a.v_page_stride = 16; }), KVT_ERROR_INVALID_ARGUMENT);
  kvt_cuda_exact_rows rows{};
  rows.struct_size = sizeof rows;
  rows.n_streams = 1;
  EXPECT_EQ(status([&](auto& a) { a.exact_k = a.exact_v = &rows; }), KVT_OK);
  EXPECT_EQ(status([&](auto& a) { a.exact_k = &rows; }), KVT_ERROR_INVALID_ARGUMENT);
  rows.n_first = 3;
  EXPECT_EQ(status([&](auto& a) { a.exact_k = a.exact_v = &rows; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_cuda_attend(&problem.args(), problem.workspace().get(), 64, nullptr), KVT_ERROR_DST_TOO_SMALL);
  EXPECT_EQ(kvt_cuda_attend(&problem.args(), nullptr, 1 << 20, nullptr), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_cuda_attend_workspace_bytes(nullptr), 0u);
  expect_finished();
}

}  // namespace
}  // namespace kvt_test
