#include <cmath>
#include <numbers>

#include "cuda/cuda_attend.h"
#include "format/rotation_tables.h"

namespace kvt::cuda {
namespace {

void put_byte(uint32_t* words, unsigned at, int byte) {
  words[at / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(byte)) << (at % 4 * 8);
}

// Operand bytes as code_bytes.cuh looks them up. Keys of 16 scalar levels hold level + 64, so that no byte has bit 7.
void write_levels(const LevelTable& table, int offset, uint32_t* words) {
  const auto level = [&](unsigned i) { return table.levels[i] + offset; };
  if (!table.trellis) {
    for (unsigned i = 0; i < table.n_levels(); ++i) put_byte(words, i, level(i));
    return;
  }
  const unsigned n_m = table.n_levels() / 4;
  for (unsigned m = 0; m < n_m; ++m) {
    for (unsigned z1 = 0; z1 < 2; ++z1) {
      const unsigned i = 4 * m + 2 * z1;  // of z0 = 0
      if (table.bits == 2) {
        put_byte(words, z1 << 1 | m, level(i));
        put_byte(words, 4 | z1 << 1 | m, level(i + 1));
      } else if (table.bits == 3) {
        put_byte(words, z1 << 2 | m, level(i));
        put_byte(words, 8 + (z1 << 2 | m), level(i + 1) - level(i));
      } else if (m < n_m / 2) {  // the upper half has the same parities
        const unsigned bits = z1 << 3 | m;
        put_byte(words, 16 + ((bits ^ bits >> 1) & 7u), level(i + 1) - level(i));
      }
    }
    if (table.bits < 4) continue;
    put_byte(words, m, level(4 * m));
    put_byte(words, 8 + (7 - m), level(4 * m + 2) - level(4 * m));
  }
}

}  // namespace

AttendCall make_attend_call(const SideLayout& key, const SideLayout& value, const kvt_cuda_attention& args) {
  AttendCall call{};
  call.args = args;
  call.n_rows = args.n_group * args.n_queries;
  if (args.exact_k != nullptr) {
    call.exact_k = *args.exact_k;
    call.exact_v = *args.exact_v;
  }
  call.means = make_key_means(args);
  call.mean_pages = static_cast<int>(args.mean_cells / kPageTokens);
  call.mean_factor = args.scale * std::numbers::log2e_v<float>;
  call.step = static_cast<const char*>(args.step);
  call.step_shape = {args.n_streams, args.n_queries, args.max_cells, call.exact_k.n_first + args.recent_window};
  if (key.table == nullptr) return call;
  const auto d_k = static_cast<float>(key.head_dim);
  const float score_scale = args.scale * std::numbers::log2e_v<float>;
  call.score_factor = score_scale * key.table->step / d_k;
  call.sketch_factor = score_scale * std::sqrt(std::numbers::pi_v<float> / 2) / (std::sqrt(d_k) * d_k) / 64;
  call.value_factor = value.table->step / static_cast<float>(value.head_dim);
  if (key.code_bits != 8) write_levels(*key.table, key.table == &kLloydMax4 ? 64 : 0, call.key_bytes);
  write_levels(*value.table, 0, call.value_bytes);
  for (unsigned i = 0; i < kMaxHeadDim; ++i) {
    if (sign_bit(kSignsRotation, i)) call.signs[0][i / 32] |= 1u << (i % 32);
    if (sign_bit(kSignsSketch, i)) call.signs[1][i / 32] |= 1u << (i % 32);
  }
  return call;
}

}  // namespace kvt::cuda
