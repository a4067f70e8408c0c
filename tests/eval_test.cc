// Parts of `kvturbo eval` that need no host: what llama-perplexity prints, names of caches, charts.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cli_error.h"
#include "eval_settings.h"
#include "perplexity_output.h"
#include "svg_chart.h"

namespace kvt::cli {
namespace {

// llama-perplexity b11434, SmolLM2-135M, -c 512 --chunks 2 -ctk q4_0 -ctv q4_0.
constexpr const char* kOutput = R"(0.00.125.034 I cmn          init: llama threadpool init, n_threads = 2
0.00.158.330 I kl_divergence: computing over 2 chunks, n_ctx=512, batch_size=512, n_seq=1
0.01.981.706 I kl_divergence: 1.82 seconds per pass - ETA 0.05 minutes

chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            Same top p
   1      15.1042 ±    2.3671       0.03762 ±    0.02251       0.05744 ±    0.00607     5.813 ±  0.509 %    84.314 ±  2.282 %
   2      14.9532 ±    1.6762       0.03162 ±    0.01665       0.05677 ±    0.00373     6.164 ±  0.455 %    84.118 ±  1.620 %

====== Perplexity statistics ======
Mean PPL(Q)                   :  14.953241 ±   1.676235
Mean PPL(base)                :  14.487887 ±   1.643470
Cor(ln(PPL(Q)), ln(PPL(base))):  98.92%
Mean ln(PPL(Q)/PPL(base))     :   0.031615 ±   0.016652
Mean PPL(Q)/PPL(base)         :   1.032120 ±   0.017187
Mean PPL(Q)-PPL(base)         :   0.465354 ±   0.246485

====== KL divergence statistics ======
Mean    KLD:   0.056767 ±   0.003734
Maximum KLD:   1.084406
99.9%   KLD:   0.860853
99.0%   KLD:   0.420551
95.0%   KLD:   0.168653
90.0%   KLD:   0.113482
Median  KLD:   0.035649
10.0%   KLD:   0.007104
Minimum KLD:   0.000002

====== Token probability statistics ======
Mean    Δp: -1.433 ± 0.266 %
99.9%   Δp: 30.426%
RMS Δp    :  6.164 ± 0.455 %
Same top p: 84.118 ± 1.620 %
)";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(PerplexityOutput, ReadsEveryFigure) {
  const auto statistics = parse_divergence(kOutput);
  ASSERT_TRUE(statistics);
  EXPECT_DOUBLE_EQ(statistics->kld_mean.value, 0.056767);
  EXPECT_DOUBLE_EQ(statistics->kld_mean.error, 0.003734);
  EXPECT_DOUBLE_EQ(statistics->kld_max, 1.084406);
  EXPECT_DOUBLE_EQ(statistics->kld_999, 0.860853);
  EXPECT_DOUBLE_EQ(statistics->kld_99, 0.420551);
  EXPECT_DOUBLE_EQ(statistics->kld_median, 0.035649);
  EXPECT_DOUBLE_EQ(statistics->same_top.value, 84.118);
  EXPECT_DOUBLE_EQ(statistics->same_top.error, 1.620);
  EXPECT_DOUBLE_EQ(statistics->ppl_ratio.value, 1.032120);
  EXPECT_DOUBLE_EQ(statistics->ppl_ratio.error, 0.017187);
  EXPECT_DOUBLE_EQ(statistics->ppl, 14.953241);
  EXPECT_DOUBLE_EQ(statistics->ppl_base, 14.487887);
}

TEST(PerplexityOutput, SameLogitsHaveNoError) {
  // As it is printed when stock f16 is held against itself.
  std::string output = replaced(kOutput, "1.032120 ±   0.017187", "1.000000 ±       -nan");
  output = replaced(output, "0.056767 ±   0.003734", "-0.000000 ±   0.000000");
  const auto statistics = parse_divergence(output);
  ASSERT_TRUE(statistics);
  EXPECT_EQ(statistics->ppl_ratio.error, 0);
  EXPECT_EQ(statistics->kld_mean.value, 0);
  EXPECT_FALSE(std::signbit(statistics->kld_mean.value));
}

TEST(PerplexityOutput, IncompleteOrNotFiniteIsNoResult) {
  const std::string output = kOutput;
  EXPECT_FALSE(parse_divergence(""));
  EXPECT_FALSE(parse_divergence(output.substr(0, output.find("99.0%   KLD"))));
  EXPECT_FALSE(parse_divergence(output.substr(0, output.find("Same top p: "))));
  EXPECT_FALSE(parse_divergence(replaced(output, "0.056767 ±", "     nan ±")));
  EXPECT_FALSE(
      parse_divergence(replaced(output, "Mean PPL(base)                :  14.487887", "Mean PPL(base)                :")));
}

TEST(PerplexityOutput, CountsChunks) {
  const std::string output = kOutput;
  EXPECT_EQ(count_chunks_done(output), 2u);
  EXPECT_EQ(count_chunks_done(output.substr(0, output.find("   2      14.9532"))), 1u);
  EXPECT_EQ(count_chunks_done("1.11 seconds per pass - ETA 0.03 minutes\n[1]14.5466,[2]14.4879,[3]"), 2u);
  EXPECT_EQ(count_chunks_done(""), 0u);
  EXPECT_EQ(parse_n_chunks(output), 2u);
  EXPECT_EQ(parse_n_chunks("perplexity: calculating perplexity over 31 chunks, n_ctx=512"), 31u);
  EXPECT_EQ(parse_n_chunks(""), 0u);
}

TEST(PerplexityOutput, TextTooShort) {
  EXPECT_EQ(parse_too_short("0.00.151.254 E perplexity: the data file you provided tokenizes to only 437 tokens\n"), 437u);
  EXPECT_FALSE(parse_too_short(kOutput));
}

TEST(KvSetting, StockTypes) {
  const KvSetting q4 = parse_kv_setting("q4_0");
  EXPECT_FALSE(q4.is_ours);
  EXPECT_EQ(q4.key_type, "q4_0");
  EXPECT_EQ(q4.value_type, "q4_0");
  EXPECT_EQ(stock_bits(q4), 4.5);  // 32 elements of 4 bits and a scale of 16
  const KvSetting mixed = parse_kv_setting("q8_0/q4_0");
  EXPECT_EQ(mixed.key_type, "q8_0");
  EXPECT_EQ(mixed.value_type, "q4_0");
  EXPECT_EQ(stock_bits(mixed), 6.5);
  EXPECT_FALSE(parse_kv_setting("f16").is_ours);
}

TEST(KvSetting, Ours) {
  const KvSetting f16 = parse_kv_setting("ours:f16");
  EXPECT_TRUE(f16.is_ours);
  EXPECT_EQ(f16.codec, "f16");
  const KvSetting hybrid = parse_kv_setting("hybrid:condition=off:sinks=0");
  EXPECT_TRUE(hybrid.is_ours);
  EXPECT_EQ(hybrid.codec, "hybrid");
  EXPECT_EQ(hybrid.key_type, "f16");
  const std::map<std::string, std::string> variables = {{"KVTURBO_CONDITION", "off"}, {"KVTURBO_SINKS", "0"}};
  EXPECT_EQ(hybrid.variables, variables);
}

TEST(KvSetting, AllIsStockAndEveryCodec) {
  const std::vector<KvSetting> settings = parse_kv_settings({"all", "ours:f16"});
  std::string names;
  for (const KvSetting& setting : settings) names += setting.name + " ";
  EXPECT_TRUE(names.starts_with("f16 q8_0 q5_0 q4_0 ")) << names;
  EXPECT_TRUE(names.ends_with(" ours:f16 ")) << names;
  EXPECT_NE(names.find(" k4v3 "), std::string::npos) << names;
  EXPECT_NE(names.find(" hybrid "), std::string::npos) << names;
  for (std::size_t i = 4; i < settings.size(); ++i) EXPECT_TRUE(settings[i].is_ours) << settings[i].name;
}

TEST(KvSetting, RefusesWhatItDoesNotKnow) {
  for (const char* name :
       {"", "zip", "q4_0/zip", "q4_0/q4_0/q4_0", "q4_0:sinks=0", "ours:q4_0", "k4v3:sinks", "k4v3:=0", "k4v3:"}) {
    EXPECT_THROW(parse_kv_setting(name), CliError) << name;
  }
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(SvgChart, DrawsPointsAndEscapesText) {
  const std::string svg = chart_svg({.title = "a < b & c",
                                     .x_label = "x",
                                     .y_label = "y",
                                     .series = {{"one", {{1024, 0.01, "p"}, {4096, 0.02, ""}, {8192, 0, "left out"}}, true}}});
  EXPECT_EQ(count(svg, "<circle"), 3u);  // two points and the legend
  EXPECT_EQ(count(svg, "<polyline"), 1u);
  EXPECT_EQ(count(svg, "a &lt; b &amp; c"), 1u);
  EXPECT_EQ(count(svg, "left out"), 0u);
  EXPECT_EQ(count(svg, "nan"), 0u);
  EXPECT_EQ(count(svg, "inf"), 0u);
}

TEST(SvgChart, LinearAxesBeginAtZero) {
  Chart chart{.title = "", .x_label = "", .y_label = "", .series = {{"s", {{0, 10, ""}, {2048, 0, ""}, {4096, -1, ""}}}}};
  EXPECT_EQ(chart_svg(chart), "");  // logarithmic: no point has x > 0 and y > 0
  chart.x_scale = chart.y_scale = AxisScale::kLinear;
  const std::string svg = chart_svg(chart);
  EXPECT_EQ(count(svg, "<circle"), 3u);  // two points and the legend; -1 is left out
  EXPECT_EQ(count(svg, ">1024<"), 1u);
  EXPECT_EQ(count(svg, "nan"), 0u);
  EXPECT_EQ(count(svg, "inf"), 0u);
}

TEST(SvgChart, OnePointAndNone) {
  const std::string one = chart_svg({.title = "", .x_label = "", .y_label = "", .series = {{"s", {{4.5, 0.05, ""}}, false}}});
  EXPECT_EQ(count(one, "nan"), 0u);
  EXPECT_EQ(count(one, "<circle"), 2u);
  EXPECT_EQ(chart_svg({.title = "", .x_label = "", .y_label = "", .series = {{"s", {{4.5, 0, ""}}, false}}}), "");
}

}  // namespace
}  // namespace kvt::cli
