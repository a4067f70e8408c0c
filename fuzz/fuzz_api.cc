// A sequence of C API calls with arguments that are right, wrong or absurd: each returns one of its documented statuses, what it refuses
// changes nothing, and a workspace serves call after call.

#include <algorithm>
#include <memory>

#include "fuzz_kernels.h"

namespace {

constexpr uint32_t kPages = 3;
constexpr uint32_t kMaxRows = 70;
// One byte in sixteen asks for many: most calls are to be quick ones.
constexpr uint32_t kMostSmall = 240, kFewRows = 4, kFewQueries = 2;

using Codec = std::unique_ptr<kvt_codec, void (*)(kvt_codec*)>;

class Session {
 public:
  explicit Session(kvt_fuzz::Input* in) : in_(*in) {}

  void run() {
    for (int i = 0; i < 12 && in_.left() > 0; ++i) {
      switch (in_.below(6)) {
        case 0: create(); break;
        case 1: encode(); break;
        case 2: decode(); break;
        case 3: validate(); break;
        case 4: attend(); break;
        default: ask(); break;
      }
    }
  }

 private:
  // Mostly a head dim that exists, and a small one.
  uint32_t head_dim() {
    const uint32_t b = in_.byte();
    if (b < 160) return kvt_fuzz::kHeadDims[b % 2];
    return b < 200 ? kvt_fuzz::kHeadDims[b % 7] : b * 3 - 600;
  }
  uint32_t below(uint32_t few, uint32_t many) {
    const uint32_t b = in_.byte();
    return b % (b < kMostSmall ? few : many);
  }
  kvt_side side() { return in_.below(2) == 0 ? KVT_KEY : KVT_VALUE; }

  void create() {
    const auto id = static_cast<kvt_codec_id>(in_.below(kvt_fuzz::kCodecCount + 2));
    const uint32_t d_k = head_dim(), d_v = head_dim();
    kvt_codec* created = nullptr;
    const kvt_status status = kvt_codec_create(id, d_k, d_v, &created);
    FUZZ_CHECK((status == KVT_OK) == (created != nullptr));
    FUZZ_CHECK((status == KVT_OK) == (kvt_page_bytes_for(id, KVT_KEY, d_k) != 0 && kvt_page_bytes_for(id, KVT_VALUE, d_v) != 0));
    FUZZ_CHECK(kvt_codec_create(id, d_k, d_v, nullptr) != KVT_OK);
    if (created == nullptr) return;
    codec_ = Codec(created, kvt_codec_destroy);
    d_[KVT_KEY] = d_k;
    d_[KVT_VALUE] = d_v;
    for (const kvt_side s : {KVT_KEY, KVT_VALUE}) pages_[s].assign(kPages * kvt_page_bytes(created, s), 0);
  }

  void encode() {
    const kvt_side s = side();
    const uint32_t n = below(kFewRows, kMaxRows), wrong = in_.byte();
    std::vector<float> rows(size_t{n} * d_[s] + 1);
    for (float& x : rows) x = static_cast<float>(static_cast<int8_t>(in_.next()));
    if (wrong == 1) rows[0] = 1e38f * 10;  // infinity
    std::vector<int64_t> cells(n + 1);
    for (int64_t& c : cells) c = in_.next() % (kPages * KVT_PAGE_TOKENS);
    if (wrong == 2) cells[0] = -1;
    const std::vector<uint8_t> before = pages_[s];
    const size_t stride = wrong == 3 ? d_[s] - 1 : d_[s];
    const kvt_status status = kvt_encode(wrong == 4 ? nullptr : codec_.get(), s, wrong == 5 ? nullptr : rows.data(), stride, n, cells.data(),
                                         pages_[s].data(), before.size() / kPages);
    if (codec_ == nullptr || wrong == 4) FUZZ_CHECK(status == KVT_ERROR_INVALID_ARGUMENT);
    if (n > 0 && wrong >= 1 && wrong <= 5) FUZZ_CHECK(status != KVT_OK);
    if (status != KVT_OK) FUZZ_CHECK(pages_[s] == before);
  }

  void decode() {
    if (codec_ == nullptr) return;
    const kvt_side s = side();
    const uint32_t first = in_.byte() % (kPages * KVT_PAGE_TOKENS), left = kPages * KVT_PAGE_TOKENS - first + 1;
    const uint32_t n = below(std::min(kFewRows, left), left);
    std::vector<float> dst(n * d_[s] + 1, 7.0f);
    FUZZ_CHECK(kvt_decode(codec_.get(), s, pages_[s].data(), pages_[s].size() / kPages, first, n, dst.data(), d_[s]) == KVT_OK);
    FUZZ_CHECK(dst.back() == 7.0f);
    FUZZ_CHECK(n == 0 || kvt_decode(codec_.get(), s, nullptr, pages_[s].size() / kPages, first, n, dst.data(), d_[s]) == KVT_ERROR_INVALID_ARGUMENT);
  }

  // Foreign bytes in a page; then back to what was there.
  void validate() {
    if (codec_ == nullptr) return;
    const kvt_side s = side();
    FUZZ_CHECK(kvt_validate_pages(codec_.get(), s, pages_[s].data(), pages_[s].size() / kPages, kPages) == KVT_OK);
    std::vector<uint8_t> foreign = pages_[s];
    const size_t at = (size_t{in_.byte()} << 8 | in_.byte()) % foreign.size();
    foreign[at] = in_.byte();
    const kvt_status status = kvt_validate_pages(codec_.get(), s, foreign.data(), foreign.size() / kPages, kPages);
    FUZZ_CHECK(status == KVT_OK || status == KVT_ERROR_CORRUPT_PAGE);
  }

  void attend() {
    if (codec_ == nullptr) return;
    kvt_attention a{};
    a.struct_size = sizeof a;
    a.n_streams = 1;
    a.n_kv_heads = 1;
    a.n_group = 1 + below(kFewQueries, 6);
    a.n_queries = 1 + below(kFewQueries, 4);
    a.n_cells = static_cast<uint32_t>(in_.byte() % (kPages * KVT_PAGE_TOKENS + 1));
    a.k_pages = pages_[KVT_KEY].data();
    a.k_page_stride = pages_[KVT_KEY].size() / kPages;
    a.v_pages = pages_[KVT_VALUE].data();
    a.v_page_stride = pages_[KVT_VALUE].size() / kPages;
    std::vector<float> q(size_t{a.n_group} * a.n_queries * d_[KVT_KEY]), out(size_t{a.n_group} * a.n_queries * d_[KVT_VALUE], 7.0f);
    for (float& x : q) x = static_cast<float>(static_cast<int8_t>(in_.next())) / 16.0f;
    a.q = q.data();
    a.q_head_stride = d_[KVT_KEY] * sizeof(float);
    a.q_query_stride = a.n_group * a.q_head_stride;
    a.out = out.data();
    a.out_head_stride = d_[KVT_VALUE] * sizeof(float);
    a.out_query_stride = a.n_group * a.out_head_stride;
    a.scale = 0.125f;
    const uint32_t wrong = in_.byte() % 16, n_threads = 1 + in_.below(4);
    if (wrong == 1) a.struct_size = static_cast<uint32_t>(in_.byte() % sizeof a);
    if (wrong == 2) a.n_group = in_.below(2) == 0 ? 0 : 65;
    if (wrong == 3) a.n_queries = 0;
    if (wrong == 4) a.q = nullptr;
    if (wrong == 5) a.out = nullptr;
    if (wrong == 6) a.k_pages = nullptr;
    if (wrong == 7) a.n_exact = KVT_MAX_EXACT + 1;
    if (wrong == 8) a.n_recent = 5;  // without rows
    const size_t bytes = kvt_attend_workspace_bytes(codec_.get(), &a, n_threads);
    if (bytes == 0) {
      FUZZ_CHECK(wrong != 0);
      const std::vector<float> before = out;
      FUZZ_CHECK(kvt_attend(codec_.get(), &a) != KVT_OK);
      FUZZ_CHECK(out == before);
      return;
    }
    uint8_t* workspace = kvt_fuzz::workspace(bytes);
    for (uint32_t t = 0; t < n_threads; ++t) FUZZ_CHECK(kvt_attend_thread(codec_.get(), &a, workspace, t, n_threads) == KVT_OK);
    FUZZ_CHECK(kvt_attend_thread(codec_.get(), &a, workspace, n_threads, n_threads) == KVT_ERROR_INVALID_ARGUMENT);
    FUZZ_CHECK(std::all_of(workspace, workspace + 64, [](uint8_t b) { return b == 0; }));
    for (const float x : out) FUZZ_CHECK(x == x);
    if (wrong == 15) FUZZ_CHECK(kvt_attend(codec_.get(), &a) == KVT_OK);
  }

  void ask() {
    const auto status = static_cast<kvt_status>(in_.byte() & 31);
    FUZZ_CHECK(kvt_status_string(status) != nullptr);
    char name[9] = {};
    for (char& c : name) c = static_cast<char>(in_.byte());
    name[8] = 0;
    kvt_codec_id id = static_cast<kvt_codec_id>(15);
    if (kvt_codec_from_name(name, &id) == KVT_OK) {
      FUZZ_CHECK(std::strcmp(kvt_codec_name(id), name) == 0);
    } else {
      FUZZ_CHECK(id == static_cast<kvt_codec_id>(15));
    }
    FUZZ_CHECK(kvt_page_bytes(nullptr, KVT_KEY) == 0);
    kvt_codec_destroy(nullptr);
  }

  kvt_fuzz::Input& in_;
  Codec codec_{nullptr, kvt_codec_destroy};
  uint32_t d_[2] = {64, 64};
  std::vector<uint8_t> pages_[2] = {std::vector<uint8_t>(16), std::vector<uint8_t>(16)};
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kvt_fuzz::Input in(data, size);
  Session(&in).run();
  return 0;
}
