// Errors of the codes of xor_window.h, as scripts/train_trellis.py prints them for those of the product: four chains for each
// vector of Gaussian direction, the norms of format.md 5, one search and the best of several scales.
//
//   research_errors                                  errors of kXor3 and kXor4
//   research_errors --train BITS SEARCHES MASK...    trains levels for masks (hexadecimal), after trying SEARCHES changes of
//   one of them
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "format/trellis.h"
#include "xor_window.h"

namespace kvt::research {
namespace {

constexpr unsigned kTrainLength = 128;

std::vector<float> gaussian(unsigned seed, size_t n) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> y(n);
  std::generate(y.begin(), y.end(), [&] { return normal(random); });
  return y;
}

void onto_sphere(unsigned d, float* y) {
  double squares = 0;
  for (unsigned i = 0; i < d; ++i) squares += double{y[i]} * y[i];
  for (unsigned i = 0; i < d; ++i) y[i] = static_cast<float>(y[i] * std::sqrt(d / squares));
}

// Lloyd's iteration with the search of open chains in the place of the nearest level. Levels [n_levels] by index. Returns the
// error of the last round.
double train(const XorCode& code, const std::vector<float>& y, unsigned rounds, std::vector<double>* levels) {
  unsigned index[kWindows];
  for (unsigned w = 0; w < kWindows; ++w) index[w] = code.index_of(w);
  double error = 0;
  const unsigned n_levels = code.n_levels();
  for (unsigned round = 0; round < rounds; ++round) {
    float values[kWindows];
    for (unsigned w = 0; w < kWindows; ++w) values[w] = static_cast<float>((*levels)[index[w]]);
    std::vector<double> total(n_levels), count(n_levels);
    error = 0;
    for (size_t at = 0; at < y.size(); at += kMaxChain) {
      uint16_t windows[kMaxChain];
      error += search_chain(code.bits, values, &y[at], kMaxChain, Ends::kFree, windows).error;
      for (unsigned e = 0; e < kMaxChain; ++e) {
        total[index[windows[e]]] += y[at + e];
        count[index[windows[e]]] += 1;
      }
    }
    for (unsigned i = 0; i < n_levels / 2; ++i) {
      const unsigned j = n_levels - 1 - i;
      const double n = count[i] + count[j];
      if (n == 0) continue;
      (*levels)[j] = (total[j] - total[i]) / n;
      (*levels)[i] = -(*levels)[j];
    }
  }
  return error / static_cast<double>(y.size());
}

// Where training starts: spread as Gaussian samples, somewhat wider.
std::vector<double> first_levels(unsigned n) {
  std::vector<float> sorted = gaussian(1, 100000);
  std::sort(sorted.begin(), sorted.end());
  std::vector<double> levels(n);
  for (unsigned i = n / 2; i < n; ++i) {
    levels[i] = 1.3 * double{sorted[static_cast<size_t>((i + 0.5) / n * 100000)]};
    levels[n - 1 - i] = -levels[i];
  }
  return levels;
}

// The step, and integers up to 63, that leave the least error.
void snap(const std::vector<double>& levels, const std::vector<float>& y, XorCode* code) {
  const unsigned half = code->n_levels() / 2;
  double least = 1e30;
  XorCode tried = *code;
  for (double top = 40; top <= 63.49; top += 0.25) {
    tried.step = static_cast<float>(levels.back() / top);
    for (unsigned i = 0; i < half; ++i)
      tried.positive_half[i] = static_cast<int8_t>(std::lround(levels[half + i] / double{tried.step}));
    float values[kWindows];
    for (unsigned w = 0; w < kWindows; ++w) values[w] = tried.step * static_cast<float>(tried.level_of(w));
    double error = 0;
    uint16_t windows[kMaxChain];
    for (size_t at = 0; at < y.size(); at += kMaxChain)
      error += search_chain(code->bits, values, &y[at], kMaxChain, Ends::kFree, windows).error;
    if (error >= least) continue;
    least = error;
    *code = tried;
  }
}

int train_command(int n_arguments, char** arguments) {
  XorCode code{};
  code.bits = static_cast<unsigned>(std::atoi(arguments[0]));
  const int n_tried = std::atoi(arguments[1]);
  code.index_bits = static_cast<unsigned>(n_arguments - 2);
  if ((code.bits != 3 && code.bits != 4) || code.index_bits < code.bits || code.index_bits > code.masks.size()) {
    std::fputs("research_errors: --train takes 3 or 4 bits, a number of searches, and up to 6 masks\n", stderr);
    return 2;
  }
  for (unsigned i = 0; i < code.index_bits; ++i)
    code.masks[i] = static_cast<uint16_t>(std::strtoul(arguments[2 + i], nullptr, 16) & (kWindows - 1));
  std::mt19937_64 random(7);
  const std::vector<float> few = gaussian(2, 300 * kTrainLength), many = gaussian(3, 3000 * kTrainLength);
  const auto error_of = [&](const XorCode& tried) {
    std::vector<double> levels = first_levels(code.n_levels());
    return train(tried, few, 6, &levels);
  };
  double best = error_of(code);
  for (int i = 0; i < n_tried; ++i) {
    XorCode tried = code;
    const unsigned n_changes = 1 + static_cast<unsigned>(random() % 3);
    for (unsigned c = 0; c < n_changes; ++c)
      tried.masks[random() % code.index_bits] ^= static_cast<uint16_t>(1u << random() % kWindowBits);
    const double error = error_of(tried);
    if (error >= best) continue;
    best = error;
    code = tried;
    std::fprintf(stderr, "%d: %.5f masks", i, best);
    for (unsigned m = 0; m < code.index_bits; ++m) std::fprintf(stderr, " %x", unsigned{code.masks[m]});
    std::fputc('\n', stderr);
  }
  std::vector<double> levels = first_levels(code.n_levels());
  const double error = train(code, many, 15, &levels);
  std::sort(levels.begin(), levels.end());
  snap(levels, few, &code);
  std::printf("open chains %.5f; masks", error);
  for (unsigned m = 0; m < code.index_bits; ++m) std::printf(" 0x%x,", unsigned{code.masks[m]});
  std::printf(" step %.9gf, levels", double{code.step});
  for (unsigned i = 0; i < code.n_levels() / 2; ++i) std::printf(" %d,", int{code.positive_half[i]});
  std::putchar('\n');
  return 0;
}

// Figures of codes that decode to anything else would be worthless.
void check_decodes(const XorCode& code, kvt_side side, unsigned d, const uint8_t* codes, const int8_t* levels) {
  int8_t decoded[kMaxHeadDim];
  decode_xor(code, side, d, codes, decoded);
  if (std::equal(levels, levels + d, decoded)) return;
  std::fputs("research_errors: codes do not decode to the levels that were chosen\n", stderr);
  std::exit(1);
}

// 1 - the least-squares error of the levels for scale * y.
double merit(const XorCode& code, kvt_side side, unsigned d, const float* y, float scale, Ends ends, unsigned* n_passes) {
  float scaled[kMaxHeadDim] = {};
  uint8_t codes[kMaxHeadDim];
  int8_t levels[kMaxHeadDim];
  for (unsigned i = 0; i < d; ++i) scaled[i] = scale * y[i];
  *n_passes += encode_xor(code, side, d, scaled, ends, codes, levels);
  if (ends != Ends::kFree) check_decodes(code, side, d, codes, levels);
  double along = 0, squares = 0;
  for (unsigned i = 0; i < d; ++i) {
    along += double{y[i]} * levels[i];
    squares += static_cast<double>(levels[i] * levels[i]);
  }
  return along * along / (squares * d);
}

void print_errors(const char* name, const XorCode& code, unsigned d, const char* how, Ends ends,
                  const std::vector<float>& scales, unsigned n_vectors) {
  std::vector<float> y = gaussian(4, size_t{n_vectors} * d);
  double sum[2] = {}, squares = 0;  // matched, least squares
  unsigned n_passes = 0;
  for (unsigned v = 0; v < n_vectors; ++v) {
    onto_sphere(d, &y[size_t{v} * d]);
    double best = 0;
    for (const float scale : scales)
      best = std::max(best, merit(code, KVT_VALUE, d, &y[size_t{v} * d], scale, ends, &n_passes));
    sum[0] += 1 / best - 1;
    sum[1] += 1 - best;
    squares += (1 - best) * (1 - best);
  }
  const double mean = sum[1] / n_vectors;
  std::printf("%s, d = %3u, %-28s matched %.5f, least squares %.5f +- %.5f, %.1f passes\n", name, d, how, sum[0] / n_vectors,
              mean, std::sqrt((squares / n_vectors - mean * mean) / n_vectors), n_passes / 4.0 / n_vectors);
  std::fflush(stdout);
}

void print_all(const char* name, const XorCode& code, const std::vector<float>& scales) {
  for (const unsigned d : {64u, 128u, 256u}) {
    print_errors(name, code, d, "circular", Ends::kCircular, {1}, 4000);
    print_errors(name, code, d, "circular, exact (400 vectors)", Ends::kCircularExact, {1}, 400);
    print_errors(name, code, d, "open ends", Ends::kFree, {1}, 4000);
    print_errors(name, code, d, "circular, three scales", Ends::kCircular, scales, 4000);
  }
}

}  // namespace
}  // namespace kvt::research

int main(int argc, char** argv) {
  using namespace kvt::research;
  if (argc > 4 && std::string(argv[1]) == "--train") return train_command(argc - 2, argv + 2);
  if (argc > 1) {
    std::fputs("usage: research_errors [--train BITS SEARCHES MASK...]\n", stderr);
    return 2;
  }
  print_all("3 bits", kXor3, {0.96f, 1.08f, 1.2f});
  print_all("4 bits", kXor4, {0.92f, 1.04f, 1.16f});
}
