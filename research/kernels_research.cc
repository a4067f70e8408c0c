// The kernel table of the research plug-in: AVX2's, with rows encoded by an experimental code in pages of `k8v4`. Those have
// room for what is tried: 7-bit levels of keys, which are stored as such, and 4-bit codes of values, which are decoded as they
// are unpacked. So exact rows, conditioning and integer products are those of the product. Saved states of values are not: they
// would be read as `k8v4`.
//
// It takes the place of cpu/kernel_select.cc. KVTURBO_ISA names the code: KVTURBO_CODEC=k8v4 KVTURBO_ISA=x4x3.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/cpu_features.h"
#include "cpu/kernel_select.h"
#include "cpu/kernels_avx2.cc"  // for its products
#include "reference/reference.h"
#include "research_codes.h"

namespace kvt::cpu {
namespace {

const research::ResearchCode* g_code = nullptr;

struct ResearchKernels : Avx2 {
  static constexpr unsigned kDirectRows = 0;

  static void encode_row(const SideLayout& layout, const float* x, uint8_t* page, unsigned slot) {
    if (layout.codec == KVT_CODEC_F16) return Avx2::encode_row(layout, x, page, slot);
    if (layout.codec != KVT_CODEC_K8V4) {
      std::fputs("kvturbo research: codes are tried in pages of k8v4; use KVTURBO_CODEC=k8v4\n", stderr);
      std::abort();
    }
    const unsigned d = layout.head_dim;
    const bool is_key = layout.side == KVT_KEY;
    const float n = std::sqrt(reference::ordered_dot(x, x, d));
    research::EncodedRow row{};
    uint16_t norm = n == 0 ? 0 : kHalfNan;
    if (n > 0 && std::isfinite(n)) {
      float y[kMaxHeadDim];
      std::memcpy(y, x, d * sizeof(float));
      rotate_forward(kSignsRotation, d, y);
      for (unsigned i = 0; i < d; ++i) y[i] /= n;
      const float factor = (is_key ? g_code->key : g_code->value).encode(layout.side, d, y, &row);
      norm = float_to_half(std::min(n * factor * row.step / layout.table->step, kHalfMax));
    }
    std::memcpy(page + layout.norm_offset + 2 * size_t{slot}, &norm, sizeof norm);
    for (unsigned i = 0; is_key && i < d; ++i) row.codes[i] = static_cast<uint8_t>(row.levels[i] + 64);
    reference::write_codes(layout, row.codes, page, slot);
  }

  // A prompt reads a page once for every few queries: what it decodes to is kept while its bytes are the same.
  static void unpack_values(const SideLayout& layout, const uint8_t*, const uint8_t* page, int8_t* value) {
    struct Decoded {
      std::vector<uint8_t> page;
      std::vector<int8_t> value;
    };
    thread_local std::array<Decoded, 64> recent;
    Decoded& kept = recent[reinterpret_cast<uintptr_t>(page) / layout.page_bytes % recent.size()];
    if (!std::equal(kept.page.begin(), kept.page.end(), page, page + layout.norm_offset)) {
      kept.page.assign(page, page + layout.norm_offset);
      kept.value.resize(size_t{kPageTokens} * layout.head_dim);
      decode_values(layout, page, kept.value.data());
    }
    std::copy(kept.value.begin(), kept.value.end(), value);
  }
  static void decode_values(const SideLayout& layout, const uint8_t* page, int8_t* value) {
    const unsigned d = layout.head_dim;
    for (unsigned token = 0; token < kPageTokens; ++token) {
      uint8_t codes[kMaxHeadDim] = {};
      int8_t levels[kMaxHeadDim] = {};
      reference::read_codes(layout, page, token, codes);
      g_code->value.decode(KVT_VALUE, d, codes, levels);
      for (unsigned i = 0; i < d; ++i) value[(size_t{token / 4} * d + i) * 4 + token % 4] = levels[i];
    }
  }
};

constexpr KernelTable kKernelsResearch = make_table<ResearchKernels>("research");

}  // namespace

const KernelTable* find_kernels(const char* name) {
  g_code = research::find_research_code(name);
  return g_code != nullptr && detect_cpu_features().avx2 ? &kKernelsResearch : nullptr;
}

const KernelTable* process_kernels() {
  static const KernelTable* const chosen = [] {
    const char* name = std::getenv("KVTURBO_ISA");
    return find_kernels(name != nullptr ? name : "");
  }();
  return chosen;
}

}  // namespace kvt::cpu
