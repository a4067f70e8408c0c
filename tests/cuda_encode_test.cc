// kvt_cuda_encode writes the bytes of the CPU encoder: for every codec, side and head dim, for rows in order (whole words) and
// scattered (single nibbles), for rows that encoders find hard, and for a million random rows.

#include <algorithm>
#include <atomic>
#include <thread>

#include "api/engine_encode.h"
#include "cuda_support.h"

namespace kvt_test {
namespace {

class CudaEncode : public CudaTest {};

// Rows by formula, of every size: mostly random of any scale, and every 16th one of the hard kinds.
void make_row(uint64_t index, uint32_t d, float* row) {
  const uint64_t pick = splitmix64(21, index);
  const auto scale = static_cast<float>(std::ldexp(1.0, static_cast<int>(pick % 24) - 36));  // deviation 2^-21 .. 2^3
  for (uint32_t i = 0; i < d; ++i) row[i] = bell(22, index * d + i, 0) * scale;
  if (index % 16 != 0) return;
  const uint64_t kind = index / 16 % 14;
  const uint32_t at = static_cast<uint32_t>(pick >> 32) % d;
  switch (kind) {
    case 0:
      std::fill(row, row + d, 0.0f);
      break;
    case 1:
      std::fill(row, row + d, -0.0f);
      break;
    case 2:  // one-hot
      std::fill(row, row + d, 0.0f);
      row[at] = -3.0f;
      break;
    case 3:
      std::fill(row, row + d, 1.0f);
      break;  // one-hot after the rotation, but for the signs
    case 4:   // denormals: the squared norm underflows
      for (uint32_t i = 0; i < d; ++i) row[i] = std::ldexp(row[i] / scale, -150);
      break;
    case 5:  // small: the squared norm is a denormal
      for (uint32_t i = 0; i < d; ++i) row[i] = std::ldexp(row[i] / scale, -86);
      break;
    case 6:  // the norm is beyond fp16
      for (uint32_t i = 0; i < d; ++i) row[i] = std::ldexp(row[i] / scale, 10);
      break;
    case 7:  // the squared norm is just finite, or overflows
      for (uint32_t i = 0; i < d; ++i) row[i] = std::ldexp(row[i] / scale, 45);
      break;
    case 8:
      row[at] = std::numeric_limits<float>::quiet_NaN();
      break;
    case 9:
      row[at] = std::numeric_limits<float>::infinity();
      break;
    case 10:  // small integers: sums without rounding, so that ties of thresholds and paths happen
      for (uint32_t i = 0; i < d; ++i) row[i] = static_cast<float>(splitmix64(23, index * d + i) % 3) - 1.0f;
      break;
    case 11:
      row[at] *= 1000;
      break;  // an outlier
    case 12:  // halves at the ends of fp16
      for (uint32_t i = 0; i < d; ++i) row[i] = splitmix64(24, index * d + i) % 2 ? 65504.0f : 6e-8f;
      break;
    default:
      for (uint32_t i = 0; i < d; ++i) row[i] = i % 2 ? 0.5f : -0.5f;
  }
}

template <class Work>
void in_threads(size_t n, const Work& work) {
  const size_t n_threads = std::clamp<size_t>(std::thread::hardware_concurrency(), 1, 16);
  std::vector<std::thread> pool;
  for (size_t t = 0; t < n_threads; ++t) pool.emplace_back([&, t] { work(n * t / n_threads, n * (t + 1) / n_threads); });
  for (std::thread& thread : pool) thread.join();
}

std::vector<float> make_rows(size_t n, uint32_t d) {
  std::vector<float> rows(n * d);
  in_threads(n, [&](size_t first, size_t end) {
    for (size_t i = first; i < end; ++i) make_row(i, d, &rows[i * d]);
  });
  return rows;
}

bool is_refused(const kvt_codec* codec, kvt_side side, uint32_t d, const float* row) {
  std::vector<uint8_t> page(kvt_page_bytes(codec, side));
  const int64_t cell = 0;
  return kvt_encode(codec, side, row, d, 1, &cell, page.data(), page.size()) == KVT_ERROR_NOT_FINITE;
}

struct Run {
  kvt_codec_id codec;
  kvt_side side;
  uint32_t d, n_heads;
  std::vector<int64_t> cells;  // of each row
  kvt_cuda_type type = KVT_CUDA_F32;
};

std::string describe(const Run& run) {
  return std::string(kvt_codec_name(run.codec)) + (run.side == KVT_KEY ? " keys" : " values") + " d " + std::to_string(run.d);
}

// Encodes on both sides into pages full of garbage and compares every byte. rows: [row, head, d], as the type holds them.
void compare(const Run& run, const std::vector<float>& rows, const void* typed_rows, size_t element_bytes) {
  const CodecPtr codec = make_codec(run.codec, run.d, run.d);
  const size_t n = run.cells.size(), page_bytes = kvt_page_bytes(codec.get(), run.side);
  const size_t n_pages = pages_for(static_cast<size_t>(*std::max_element(run.cells.begin(), run.cells.end())) + 1);
  const size_t head_stride = page_bytes + 16, page_stride = run.n_heads * head_stride + 32;  // gaps
  std::vector<uint8_t> expected(n_pages * page_stride);
  for (size_t i = 0; i < expected.size(); ++i) expected[i] = static_cast<uint8_t>(i * 37 + i / 251);
  DeviceArray<uint8_t> pages(expected);
  DeviceArray<uint8_t> src(rows.size() * element_bytes);
  KVT_CUDA_OK(cudaMemcpy(src.get(), typed_rows, rows.size() * element_bytes, cudaMemcpyHostToDevice));
  DeviceArray<int64_t> cells(run.cells);
  DeviceArray<uint32_t> n_refused(std::vector<uint32_t>{5});
  kvt_cuda_encode_args args{};
  args.struct_size = sizeof args;
  args.codec = run.codec;
  args.side = run.side;
  args.head_dim = run.d;
  args.n_rows = static_cast<uint32_t>(n);
  args.n_kv_heads = run.n_heads;
  args.src_type = run.type;
  args.src = src.get();
  args.src_head_stride = run.d * element_bytes;
  args.src_row_stride = run.n_heads * args.src_head_stride;
  args.cells = cells.get();
  args.pages = pages.get();
  args.page_stride = page_stride;
  args.head_stride = head_stride;
  args.n_refused = n_refused.get();
  ASSERT_EQ(kvt_cuda_encode(&args, nullptr), KVT_OK);

  // One thread has all rows of a page: two writers of one page must be serialised.
  std::vector<std::vector<size_t>> rows_of(n_pages);
  for (size_t i = 0; i < n; ++i) {
    if (run.cells[i] >= 0) rows_of[static_cast<size_t>(run.cells[i]) / 64].push_back(i);
  }
  std::atomic<uint32_t> refused{5};
  in_threads(n_pages, [&](size_t first, size_t end) {
    for (size_t page = first; page < end; ++page) {
      for (const size_t i : rows_of[page]) {
        const int64_t slot = run.cells[i] % 64;
        for (uint32_t head = 0; head < run.n_heads; ++head) {
          const float* row = &rows[(i * run.n_heads + head) * run.d];
          kvt_internal::encode_unchecked(codec.get(), run.side, row, run.d, 1, &slot,
                                         &expected[page * page_stride + head * head_stride], page_bytes);
          if (is_refused(codec.get(), run.side, run.d, row)) ++refused;
        }
      }
    }
  });
  expect_finished();
  const std::vector<uint8_t> actual = pages.host();
  if (actual != expected) {
    size_t n_bad = 0, first_bad = actual.size();
    for (size_t i = 0; i < actual.size(); ++i) {
      if (actual[i] == expected[i]) continue;
      first_bad = std::min(first_bad, i);
      ++n_bad;
    }
    ADD_FAILURE() << describe(run) << ": " << n_bad << " of " << actual.size() << " bytes differ, first at byte "
                  << first_bad % page_stride % head_stride << " of page " << first_bad / page_stride;
  }
  EXPECT_EQ(n_refused.host()[0], refused.load()) << describe(run);
}

void compare(const Run& run, const std::vector<float>& rows) { compare(run, rows, rows.data(), sizeof(float)); }

std::vector<int64_t> shuffled_cells(size_t n) {
  std::vector<int64_t> cells = cells_from(0, n);
  for (size_t i = n; i > 1; --i) std::swap(cells[i - 1], cells[splitmix64(25, i) % i]);
  return cells;
}

template <class Check>
void for_all(const Check& check) {
  for (const kvt_codec_id codec : kCudaCodecs) {
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
      for (const uint32_t d : kHeadDims) check(codec, side, d);
    }
  }
}

TEST_F(CudaEncode, RowsInOrder) {
  for_all([](kvt_codec_id codec, kvt_side side, uint32_t d) {
    compare({codec, side, d, 2, cells_from(64, 1024)}, make_rows(2048, d));
  });
}

TEST_F(CudaEncode, ScatteredAndSkippedRows) {
  for_all([](kvt_codec_id codec, kvt_side side, uint32_t d) {
    std::vector<int64_t> cells = shuffled_cells(999);
    for (size_t i = 0; i < cells.size(); i += 7) cells[i] = -1 - cells[i];
    compare({codec, side, d, 2, cells}, make_rows(2 * cells.size(), d));
  });
}

TEST_F(CudaEncode, OneRow) {
  for_all([](kvt_codec_id codec, kvt_side side, uint32_t d) { compare({codec, side, d, 3, {77}}, make_rows(3, d)); });
}

// Rows that begin in the middle of a group, so that no block has a whole one.
TEST_F(CudaEncode, ShiftedRows) {
  for (const kvt_codec_id codec : kCudaCodecs) compare({codec, KVT_VALUE, 128, 1, cells_from(5, 200)}, make_rows(200, 128));
}

TEST_F(CudaEncode, HalfAndBfloatRows) {
  const size_t n = 512;
  const uint32_t d = 128;
  std::vector<uint16_t> halves(n * d), bfloats(n * d);
  std::vector<float> half_rows(n * d), bfloat_rows(n * d);
  for (size_t i = 0; i < n * d; ++i) {
    halves[i] = static_cast<uint16_t>(splitmix64(26, i));
    if ((halves[i] & 0x7c00) == 0x7c00) halves[i] &= 0x7fff;  // the sign of a NaN is not ours to keep
    half_rows[i] = static_cast<float>(half_value(halves[i]));
    bfloats[i] = static_cast<uint16_t>(splitmix64(27, i) & 0x9fffu) | 0x2000u;  // no infinities, no overflow
    const uint32_t bits = static_cast<uint32_t>(bfloats[i]) << 16;
    std::memcpy(&bfloat_rows[i], &bits, 4);
  }
  for (const kvt_codec_id codec : kCudaCodecs) {
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
      compare({codec, side, d, 1, shuffled_cells(n), KVT_CUDA_F16}, half_rows, halves.data(), 2);
      compare({codec, side, d, 1, cells_from(0, n), KVT_CUDA_BF16}, bfloat_rows, bfloats.data(), 2);
    }
  }
}

TEST_F(CudaEncode, AMillionRows) {
  const size_t n = 1000000;
  const std::vector<float> rows = make_rows(n, 128);
  for (const kvt_codec_id codec : kCodeCodecs) {
    for (const kvt_side side : {KVT_KEY, KVT_VALUE}) compare({codec, side, 128, 1, cells_from(0, n)}, rows);
  }
}

TEST_F(CudaEncode, RefusesBadArguments) {
  DeviceArray<uint8_t> pages(4096);
  DeviceArray<float> src(64);
  DeviceArray<int64_t> cells(std::vector<int64_t>{0});
  kvt_cuda_encode_args good{};
  good.struct_size = sizeof good;
  good.codec = KVT_CODEC_SCALAR43;
  good.head_dim = 64;
  good.n_rows = good.n_kv_heads = 1;
  good.src = src.get();
  good.cells = cells.get();
  good.pages = pages.get();
  good.page_stride = 4096;
  const auto status = [&](auto change) {
    kvt_cuda_encode_args args = good;
    change(args);
    return kvt_cuda_encode(&args, nullptr);
  };
  EXPECT_EQ(status([](auto&) {}), KVT_OK);
  EXPECT_EQ(status([](auto& a) { a.n_rows = 0; }), KVT_OK);
  EXPECT_EQ(status([](auto& a) { a.struct_size = 8; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](auto& a) { a.codec = static_cast<kvt_codec_id>(99); }), KVT_ERROR_UNKNOWN_CODEC);
  EXPECT_EQ(status([](auto& a) { a.head_dim = 72; }), KVT_ERROR_HEAD_DIM);
  EXPECT_EQ(status([](auto& a) { a.src = nullptr; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](auto& a) { a.page_stride = 2168; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(status([](auto& a) { a.pages = static_cast<char*>(a.pages) + 8; }), KVT_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(kvt_cuda_encode(nullptr, nullptr), KVT_ERROR_INVALID_ARGUMENT);
  expect_finished();
}

}  // namespace
}  // namespace kvt_test
