// What a model's file says about its cache, how large caches are, and the measured figures that `kvturbo estimate` reads.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "cache_sizes.h"
#include "cli_error.h"
#include "gguf_bytes.h"
#include "measured_tables.h"

namespace kvt::cli {
namespace {

TEST(ModelShape, HeadDimFromTheEmbedding) {
  const ModelShape shape = GgufBytes(7)
                               .text("general.architecture", "llama")
                               .texts("tokenizer.ggml.tokens", {"a", "b"})
                               .integer("llama.block_count", 30)
                               .integer("llama.context_length", 8192)
                               .integer("llama.embedding_length", 576)
                               .integer("llama.attention.head_count", 9)
                               .integer("llama.attention.head_count_kv", 3)
                               .read();
  EXPECT_EQ(shape.context_length, 8192u);
  EXPECT_EQ(shape.kv_elements_per_token(), 30u * 3 * (64 + 64));
}

TEST(ModelShape, HeadsAndDimsOfTheirOwn) {
  const ModelShape shape = GgufBytes(7)
                               .text("general.architecture", "x")
                               .integer("x.block_count", 3)
                               .integer("x.embedding_length", 640)
                               .integer("x.attention.head_count", 4)
                               .integers("x.attention.head_count_kv", {1, 2, 0})
                               .integer("x.attention.key_length", 256)
                               .integer("x.attention.value_length", 128)
                               .read();
  EXPECT_EQ(shape.kv_elements_per_token(), 3u * (256 + 128));
  EXPECT_EQ(shape.context_length, 0u);
}

TEST(ModelShape, RefusesDamage) {
  GgufBytes good(1);
  good.text("general.architecture", "llama");
  EXPECT_NO_THROW(good.read());
  EXPECT_THROW(good.read(1), CliError);
  EXPECT_THROW(GgufBytes(1).read(), CliError);
  EXPECT_THROW(GgufBytes(0, 1).read(), CliError);
}

// Of the layers that have a cache, the numbers of those with a window.
std::vector<int> windows_of(const ModelShape& shape) {
  std::vector<int> numbers;
  for (const CacheLayer& layer : shape.layers) {
    if (layer.has_window) numbers.push_back(layer.number);
  }
  return numbers;
}

GgufBytes gemma3(std::uint32_t n_layers) {
  GgufBytes bytes(7);
  bytes.text("general.architecture", "gemma3")
      .integer("gemma3.block_count", n_layers)
      .integer("gemma3.attention.head_count", 4)
      .integer("gemma3.attention.head_count_kv", 1)
      .integer("gemma3.attention.key_length", 256)
      .integer("gemma3.attention.value_length", 256)
      .integer("gemma3.attention.sliding_window", 512);
  return bytes;
}

TEST(ModelShape, WindowByTheRuleOfTheArchitecture) {
  const ModelShape shape = gemma3(12).read();
  EXPECT_EQ(shape.window, 512u);
  EXPECT_EQ(windows_of(shape), (std::vector<int>{0, 1, 2, 3, 4, 6, 7, 8, 9, 10}));
}

TEST(ModelShape, WindowThatNoRuleUsesIsNone) {
  const ModelShape shape = GgufBytes(5)
                               .text("general.architecture", "phi3")
                               .integer("phi3.block_count", 2)
                               .integer("phi3.attention.head_count", 2)
                               .integer("phi3.embedding_length", 128)
                               .integer("phi3.attention.sliding_window", 2047)
                               .read();
  EXPECT_EQ(shape.window, 0u);
  EXPECT_EQ(shape.layers.size(), 2u);
}

TEST(ModelShape, ListedWindowsWithDimsOfTheirOwnAndSharedLayers) {
  const ModelShape shape = GgufBytes(11)
                               .text("general.architecture", "gemma4")
                               .integer("gemma4.block_count", 5)
                               .integer("gemma4.attention.head_count", 8)
                               .integers("gemma4.attention.head_count_kv", {2, 2, 1, 2, 1})
                               .integer("gemma4.attention.key_length", 512)
                               .integer("gemma4.attention.value_length", 512)
                               .integer("gemma4.attention.key_length_swa", 256)
                               .integer("gemma4.attention.value_length_swa", 256)
                               .integer("gemma4.attention.sliding_window", 1024)
                               .integers("gemma4.attention.sliding_window_pattern", {1, 1, 0, 1, 0})
                               .integer("gemma4.attention.shared_kv_layers", 2)
                               .read();
  EXPECT_EQ(windows_of(shape), (std::vector<int>{0, 1}));
  ASSERT_EQ(shape.layers.size(), 3u);
  EXPECT_EQ(shape.kv_elements_per_token(), 2u * 2 * (256 + 256) + 1 * (512 + 512));
  EXPECT_EQ(shape.notes.size(), 1u);
}

TEST(ModelShape, HybridLayersKeepNone) {
  const ModelShape by_interval = GgufBytes(7)
                                     .text("general.architecture", "qwen3next")
                                     .integer("qwen3next.block_count", 8)
                                     .integer("qwen3next.attention.head_count", 16)
                                     .integer("qwen3next.attention.head_count_kv", 2)
                                     .integer("qwen3next.attention.key_length", 256)
                                     .integer("qwen3next.attention.value_length", 256)
                                     .integer("qwen3next.full_attention_interval", 4)
                                     .read();
  ASSERT_EQ(by_interval.layers.size(), 2u);
  EXPECT_EQ(by_interval.layers[0].number, 3);
  EXPECT_EQ(by_interval.layers[1].number, 7);
  EXPECT_EQ(by_interval.notes.size(), 1u);
}

TEST(ModelShape, LatentCacheHasNoValues) {
  const ModelShape shape = GgufBytes(7)
                               .text("general.architecture", "deepseek2")
                               .integer("deepseek2.block_count", 2)
                               .integer("deepseek2.attention.head_count", 16)
                               .integer("deepseek2.attention.head_count_kv", 1)
                               .integer("deepseek2.attention.key_length", 576)
                               .integer("deepseek2.attention.value_length", 512)
                               .integer("deepseek2.attention.key_length_mla", 192)
                               .read();
  EXPECT_TRUE(shape.is_latent());
  EXPECT_EQ(shape.kv_elements_per_token(), 2u * 576);
  for (const CacheType& type : cache_types()) {
    const CacheSizes sizes = cache_sizes(shape, type, {}, 1024, 1);
    EXPECT_EQ(sizes.n_layers_f16, type.is_ours ? 2 : 0) << type.name;
    if (type.is_ours) {
      EXPECT_EQ(sizes.total_bytes, 2u * 576 * 2 * 1024) << type.name;
    }
  }
}

TEST(ModelShape, RecurrentModelKeepsNothing) {
  EXPECT_TRUE(GgufBytes(2).text("general.architecture", "mamba").integer("mamba.block_count", 24).read().layers.empty());
}

TEST(ModelShape, ActiveWeightsLeaveOutIdleExpertsAndEmbeddings) {
  const ModelShape shape = GgufBytes(4, 3, 4)
                               .text("general.architecture", "x")
                               .integer("x.block_count", 1)
                               .integer("x.expert_count", 8)
                               .integer("x.expert_used_count", 2)
                               .tensor("token_embd.weight", 320)
                               .tensor("output.weight", 640)
                               .tensor("blk.0.ffn_up_exps.weight", 6400)
                               .tensor("blk.0.attn_k.weight", 64)
                               .read();
  EXPECT_EQ(shape.active_weight_bytes, 640u + 6400 / 4 + 64);
  EXPECT_GT(shape.weight_bytes, 320u + 640 + 6400 + 64);
}

TEST(CacheSizes, AsTheHostAllocates) {
  // llama.cpp b11434, Gemma3-270m -c 32768: "size = 96.00 MiB (32768 cells, 3 layers)" and "15.00 MiB (1024 cells, 15 layers)".
  const ModelShape shape = gemma3(18).read();
  const CacheType f16 = cache_types().front();
  EXPECT_EQ(cache_sizes(shape, f16, {}, 32768, 1).total_bytes, (96u + 15) << 20);
  EXPECT_EQ(cache_sizes(shape, f16, {}, 32700, 1).total_bytes, (96u + 15) << 20);  // rounded up to 256
  EXPECT_EQ(cache_sizes(shape, f16, {}, 4 * 32768, 4).total_bytes, 4u * (96 + 15) << 20);
}

TEST(CacheSizes, TypesThatDoNotFit) {
  const auto shape_of = [](std::uint32_t head_dim) {
    ModelShape shape;
    shape.layers = {{.number = 0, .n_kv_heads = 1, .key_dim = head_dim, .value_dim = head_dim}};
    return shape;
  };
  for (const CacheType& type : cache_types()) {
    // 80: no multiple of the 32 values of a stock block. 72: none of our head dims.
    EXPECT_EQ(cache_sizes(shape_of(80), type, {}, 256, 1).is_possible, type.is_ours || type.name == "f16") << type.name;
    EXPECT_EQ(cache_sizes(shape_of(80), type, {}, 256, 1).n_layers_f16, 0) << type.name;
    EXPECT_EQ(cache_sizes(shape_of(72), type, {}, 256, 1).n_layers_f16, type.is_ours ? 1 : 0) << type.name;
  }
}

TEST(CacheSizes, LongestContextIsTheLastThatFits) {
  ModelShape shape = gemma3(18).read();
  shape.weight_bytes = 250 << 20;
  for (const CacheType& type : cache_types()) {
    for (const std::uint64_t n_slots : {1, 3}) {
      const std::uint64_t memory = 1 << 30, n_tokens = longest_context(shape, type, {}, memory, n_slots);
      const auto needed = [&](std::uint64_t n) {
        return shape.weight_bytes + working_bytes(n) + cache_sizes(shape, type, {}, n, n_slots).total_bytes;
      };
      EXPECT_LE(needed(n_tokens), memory) << type.name;
      EXPECT_GT(needed(n_tokens + 256 * n_slots), memory) << type.name;
    }
  }
  EXPECT_EQ(longest_context(shape, cache_types().front(), {}, 100 << 20, 1), 0u);  // the weights alone do not fit
}

constexpr const char* kSpeedPage = R"(### A whole model
`kvturbo bench model -m x`:

| test | depth | cache | tokens/s | over stock f16 | spread |
|---|---|---|---|---|---|
| tg32 | 0 | stock f16 | 100.0 | 1.00 | 0.0 % |
| tg32 | 0 | `k4v3` | 80.0 | 0.80 | 0.0 % |
| tg32 | 1000 | stock f16 | 50.0 | 1.00 | 0.0 % |
| tg32 | 1000 | k4v3 | 75.0 | 1.50 | 0.0 % |
| pp512 | 1000 | k4v3 | 75.0 | 9.00 | 0.0 % |

With `--isa avx2`:

| tg32 | 0 | stock f16 | 100.0 | 1.00 | 0.0 % |
| tg32 | 1000 | k4v3 | 60.0 | 1.20 | 0.0 % |

### Another section

| tg32 | 1000 | other | 75.0 | 9.00 | 0.0 % |
)";

TEST(MeasuredTables, SpeedOfTheKernelsAtHand) {
  const SpeedCurve avx512(measured_speeds(kSpeedPage, "avx512"), 1000, 1), avx2(measured_speeds(kSpeedPage, "avx2"), 1000, 1);
  EXPECT_NEAR(avx512.at("k4v3", 0)->ratio, 0.8, 1e-9);
  EXPECT_NEAR(avx512.at("k4v3", 1)->ratio, 1.5, 1e-9);  // weights as large as the cache: depth 1000
  EXPECT_FALSE(avx512.at("k4v3", 1)->is_extrapolated);
  EXPECT_NEAR(avx2.at("k4v3", 1)->ratio, 1.2, 1e-9);
  // Stock takes 10 ms, and 10 more for 1000 tokens; ours 12.5 and 0.83: at depth 2000 30 / 14.17.
  EXPECT_NEAR(avx512.at("k4v3", 2)->ratio, 30 / (12.5 + 2 * (40.0 / 3 - 12.5)), 1e-9);
  EXPECT_TRUE(avx512.at("k4v3", 2)->is_extrapolated);
  EXPECT_FALSE(avx512.at("other", 1));
}

TEST(MeasuredTables, LossByModelTextAndCache) {
  const std::vector<MeasuredLoss> losses = measured_losses(
      "### m-1, code, 4 x 1024 tokens\n\n| cache | bits | bytes per token | mean KLD | rest |\n|---|---|---|---|---|\n"
      "| `k4v3` | 3.87 | 5,577 | 0.00857 ± 0.000249 | 1 |\n\n## Other\n| `q4_0` | 1 | 1 | 7 | 1 |\n");
  ASSERT_EQ(losses.size(), 1u);
  EXPECT_EQ(losses[0].model, "m-1");
  EXPECT_EQ(losses[0].text, "code");
  EXPECT_EQ(losses[0].n_ctx, 1024u);
  EXPECT_EQ(losses[0].cache, "k4v3");
  EXPECT_DOUBLE_EQ(losses[0].kld_mean, 0.00857);
}

// The pages may change, but not so that the program finds nothing in them.
TEST(MeasuredTables, ThePagesHaveThem) {
  for (const char* isa : {"avx512", "avx2"}) {
    const SpeedCurve curve(measured_speeds(performance_page(), isa), 1, 1);
    for (const char* cache : {"stock f16", "stock q4_0", "k4v3", "hybrid"})
      EXPECT_TRUE(curve.at(cache, 1000)) << cache << " " << isa;
    EXPECT_EQ(curve.at("stock f16", 1000)->ratio, 1);
  }
  std::set<std::string> found;
  for (const MeasuredLoss& loss : measured_losses(quality_page())) {
    if (loss.text == "english" && loss.kld_mean >= 0) found.insert(loss.model + " " + loss.cache);
  }
  for (const char* model : {"smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b"}) {
    for (const CacheType& type : cache_types())
      EXPECT_TRUE(found.contains(std::string(model) + " " + type.name)) << model << " " << type.name;
  }
}

}  // namespace
}  // namespace kvt::cli
