#include "metrics.h"

#include <unistd.h>

#include <cstdio>
#include <mutex>
#include <string>

#include "cache_buffer.h"
#include "codec_store.h"
#include "no_throw.h"
#include "plugin_messages.h"

namespace kvt::plugin {
namespace {

using Clock = std::chrono::steady_clock;

PluginOptions g_options;
std::atomic<int> g_first_layer{-1};
std::atomic<int64_t> g_next_write_ns{0};

// What the live caches hold.
struct CacheTotals {
  uint64_t n_compressed = 0, n_f16 = 0;  // tensors: keys or values of a layer
  uint64_t n_cells = 0, n_pages = 0, n_exact_rows = 0;
  uint64_t bytes = 0, f16_bytes = 0;
};
std::mutex g_mutex;
CacheTotals g_largest;  // by bytes: at the end of the process the caches are gone

CacheTotals cache_totals() {
  CacheTotals sum;
  for_each_cache_buffer([&](const CacheBuffer& buffer) {
    for (const auto& tensor : buffer.tensors()) {
      if (tensor->state() == CacheTensor::State::kUndecided) continue;
      sum.bytes += tensor->storage_bytes();
      sum.f16_bytes += tensor->image_bytes();
      if (tensor->state() == CacheTensor::State::kRows) {
        ++sum.n_f16;
        continue;
      }
      ++sum.n_compressed;
      const int64_t n_streams = tensor->n_rows() / tensor->n_cells();
      const int64_t n_pages = (tensor->n_cells() + KVT_PAGE_TOKENS - 1) / KVT_PAGE_TOKENS;
      const auto n_recent =
          tensor->recent() != nullptr ? static_cast<int64_t>(RecentRows::capacity_for(tensor->recent()->window())) : 0;
      sum.n_cells += static_cast<uint64_t>(tensor->side() == KVT_KEY ? tensor->n_rows() : 0);
      sum.n_pages += static_cast<uint64_t>(n_streams * tensor->n_heads() * n_pages);
      sum.n_exact_rows += static_cast<uint64_t>(n_streams * tensor->n_heads() * (tensor->n_exact() + n_recent));
    }
  });
  return sum;
}

double seconds(uint64_t ns) { return static_cast<double>(ns) * 1e-9; }

std::string number(double value, const char* format = "%.15g") {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

void add_metric(std::string* text, const char* name, const char* type, const char* help, double value,
                const std::string& labels = "") {
  *text += std::string("# HELP ") + name + " " + help + "\n# TYPE " + name + " " + type + "\n" + name + labels + " " +
           number(value) + "\n";
}

std::string metrics_text() {
  const Counters& c = counters();
  const CacheTotals totals = cache_totals();
  std::string text;
  const auto count = [&](const char* name, const char* help, double value) { add_metric(&text, name, "counter", help, value); };
  const auto gauge = [&](const char* name, const char* help, double value, const std::string& labels = "") {
    add_metric(&text, name, "gauge", help, value, labels);
  };
  gauge("kvturbo_info", "Version, codec and kernels.", 1,
        std::string("{version=\"") + kvt_version() + "\",codec=\"" + kvt_codec_name(cache_options().codec) + "\",isa=\"" +
            codec_store_isa() + "\"}");
  count("kvturbo_tokens_total", "Tokens written to the cache.", static_cast<double>(c.tokens));
  count("kvturbo_rows_encoded_total", "Rows of keys and of values written, of all layers.", static_cast<double>(c.rows));
  count("kvturbo_graphs_total", "Graphs that touched a compressed cache.", static_cast<double>(c.graphs));
  count("kvturbo_encode_seconds_total", "Time of encoding, of one of the threads that share it.", seconds(c.encode_ns));
  count("kvturbo_attend_seconds_total", "Time of attention, of one of the threads that share it.", seconds(c.attend_ns));
  count("kvturbo_probe_warnings_total", "Times that keys did not fit their codec.", static_cast<double>(c.probe_warnings));
  gauge("kvturbo_cache_tensors", "Keys or values of a layer that are compressed.", static_cast<double>(totals.n_compressed));
  gauge("kvturbo_cache_tensors_f16", "Keys or values of a layer that are not compressed.", static_cast<double>(totals.n_f16));
  gauge("kvturbo_cache_cells", "Cells of all compressed layers.", static_cast<double>(totals.n_cells));
  gauge("kvturbo_cache_pages", "Pages of 64 cells of a head of keys or values.", static_cast<double>(totals.n_pages));
  gauge("kvturbo_cache_exact_rows", "Rows kept in fp16 beside the codes.", static_cast<double>(totals.n_exact_rows));
  gauge("kvturbo_cache_bytes", "Bytes of the caches when every cell is in use.", static_cast<double>(totals.bytes));
  gauge("kvturbo_cache_f16_bytes", "What the same caches would take in f16.", static_cast<double>(totals.f16_bytes));
  return text;
}

// A reader sees the whole file or the one before.
void write_metrics() {
  const std::string text = metrics_text();
  const std::string temporary = g_options.metrics_path + "." + std::to_string(getpid()) + ".tmp";
  std::FILE* file = std::fopen(temporary.c_str(), "w");
  bool is_written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (file != nullptr) is_written = std::fclose(file) == 0 && is_written;
  if (!is_written || std::rename(temporary.c_str(), g_options.metrics_path.c_str()) != 0) {
    std::remove(temporary.c_str());
    say_once("cannot write KVTURBO_METRICS=" + g_options.metrics_path + "; name a file in a folder that can be written");
  }
}

}  // namespace

void metrics_configure(const PluginOptions& options) { g_options = options; }

void metrics_count_rows(const CacheTensor& cache, int64_t n_rows) {
  counters().rows.fetch_add(static_cast<uint64_t>(n_rows), std::memory_order_relaxed);
  if (cache.side() != KVT_KEY) return;
  int first = -1;
  g_first_layer.compare_exchange_strong(first, cache.layer());  // graphs write the layers in order
  if (g_first_layer == cache.layer()) counters().tokens.fetch_add(static_cast<uint64_t>(n_rows), std::memory_order_relaxed);
}

void metrics_layout_changed() {
  const CacheTotals totals = cache_totals();
  const std::lock_guard<std::mutex> lock(g_mutex);
  if (totals.bytes > g_largest.bytes) g_largest = totals;
}

void metrics_graph_done() {
  if (g_options.metrics_path.empty()) return;
  const int64_t now = std::chrono::nanoseconds(Clock::now().time_since_epoch()).count();
  int64_t due = g_next_write_ns;
  // One thread of several contexts takes the turn.
  if (now < due || !g_next_write_ns.compare_exchange_strong(due, now + 1000000000)) return;
  completes(write_metrics);  // without memory for the text the next one will do
}

namespace {

void write_and_say() {
  const Counters& c = counters();
  if (c.graphs == 0) return;
  if (!g_options.metrics_path.empty()) write_metrics();
  if (g_options.is_quiet) return;
  const std::lock_guard<std::mutex> lock(g_mutex);
  say("at exit: " + std::to_string(c.tokens) + " tokens in " + std::to_string(c.graphs) + " graphs, " +
      number(seconds(c.attend_ns), "%.2f") + " s attending, " + number(seconds(c.encode_ns), "%.2f") + " s encoding; " +
      std::to_string(g_largest.n_pages) + " pages and " + std::to_string(g_largest.n_exact_rows) + " exact rows, " +
      number(static_cast<double>(g_largest.bytes) / 1048576, "%.1f") + " MiB instead of " +
      number(static_cast<double>(g_largest.f16_bytes) / 1048576, "%.1f") + " (f16)" +
      (c.probe_warnings > 0 ? "; keys did not fit " + std::to_string(c.probe_warnings) + " times" : std::string()));
}

}  // namespace

void metrics_at_exit() { completes(write_and_say); }

}  // namespace kvt::plugin
