// The host's own flash attention on the CPU, for `kvturbo bench kernel`: its libraries are loaded at run time and a graph with
// one FLASH_ATTN_EXT is built through ggml's public C interface. Built only where ggml's headers are (KVTURBO_GGML_SOURCE);
// without them, or without a host that has shared libraries, there is nothing to compare with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "bench_support.h"

namespace kvt::cli {

enum class GgmlType { kF16, kQ8_0, kQ4_0 };

const char* ggml_type_label(GgmlType type);  // "f16", "q8_0", "q4_0"

// Where the rows of a cache lie. llama.cpp keeps a token's heads side by side, so that one head's rows are far apart, and a CPU
// that reads one head at a time waits for memory latency. The other layout, one head after another, is the best case for ggml.
enum class GgmlLayout { kHeadMajor, kTokenMajor };

struct GgmlAttentionShape {
  unsigned head_dim, n_kv_heads, n_group, n_queries, n_tokens;
};

// Returns the fp32 row of a token and kv head of the keys or the values.
using RowSource = std::function<const float*(bool is_value, unsigned token, unsigned kv_head)>;

class GgmlLibrary;

// A cache of one type, in huge pages.
class GgmlCache {
 public:
  GgmlCache(const GgmlLibrary& library, GgmlType type, GgmlLayout layout, const GgmlAttentionShape& shape,
            const RowSource& rows, WorkerPool& pool);
  std::size_t bytes_per_token_head() const { return 2 * row_bytes_; }
  GgmlType type() const { return type_; }

 private:
  friend class GgmlAttention;
  GgmlType type_;
  GgmlLayout layout_;
  std::size_t row_bytes_;
  HugeBuffer keys_, values_;
};

// One graph, ready to run. q and out: [n_queries, n_heads, head_dim] fp32, as in kvt_attention.
class GgmlAttention {
 public:
  GgmlAttention(const GgmlLibrary& library, const GgmlCache& cache, const GgmlAttentionShape& shape, const HugeBuffer& q,
                const HugeBuffer& out, unsigned n_threads);
  ~GgmlAttention();
  GgmlAttention(const GgmlAttention&) = delete;
  GgmlAttention& operator=(const GgmlAttention&) = delete;

  void run();  // throws CliError if ggml refuses

 private:
  struct Graph;
  std::unique_ptr<Graph> graph_;
};

// Loads the libraries beside the host's programs. Returns nullptr, and *why_not, if that is impossible.
std::shared_ptr<const GgmlLibrary> load_ggml(const std::filesystem::path& host_folder, std::string* why_not);

std::string ggml_library_version(const GgmlLibrary& library);

}  // namespace kvt::cli
