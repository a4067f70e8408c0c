#include "startup_report.h"

#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "cache_buffer.h"
#include "cache_buffer_type.h"
#include "codec_store.h"
#include "metrics.h"
#include "plugin_messages.h"
#include "wrapped_device.h"

namespace kvt::plugin {
namespace {

PluginOptions g_options;
std::string g_device;
std::map<std::string, std::set<int>> g_elsewhere;  // memory -> layers whose cache the host keeps there
std::atomic<bool> g_has_changed{false};
std::atomic<bool> g_is_explained{false};  // that nothing is compressed
std::mutex g_mutex;
std::set<const CacheBuffer*> g_reported;  // never dereferenced
double g_largest_score_error = -1;        // -1: not measured
std::atomic<bool> g_is_score_error_said{false};

struct Summary {
  int n_layers = 0, n_compressed = 0;
  double token_bytes = 0.0, token_bytes_f16 = 0.0;
  size_t fixed_bytes = 0;
  std::set<std::string> head_dims;                      // "64" or "192/128" (K/V)
  std::map<kvt_codec_id, std::set<int>> layers_of;      // codec -> layers
  std::map<std::string, std::set<int>> not_compressed;  // reason -> layers
  double ratio() const { return token_bytes > 0.0 ? token_bytes_f16 / token_bytes : 1.0; }
};

// A layout may change until the first write, and a host may run a graph in pieces: each layer's first write comes with its
// piece.
bool is_final(const CacheBuffer& buffer) {
  for (const auto& tensor : buffer.tensors()) {
    if (tensor->state() == CacheTensor::State::kPages && !tensor->is_written()) return false;
  }
  return true;
}

void add_buffer(const CacheBuffer& buffer, Summary* sum) {
  struct Layer {
    const CacheTensor* side[2] = {nullptr, nullptr};
  };
  std::map<int, Layer> layers;
  for (const auto& tensor : buffer.tensors()) {
    if (tensor->state() == CacheTensor::State::kUndecided) continue;  // not used by any graph so far
    layers[tensor->layer()].side[tensor->side()] = tensor.get();
    sum->token_bytes += tensor->token_bytes();
    sum->fixed_bytes += tensor->fixed_bytes();
    sum->token_bytes_f16 += static_cast<double>(tensor->row_bytes());
  }
  for (const auto& [number, layer] : layers) {
    ++sum->n_layers;
    const CacheTensor* keys = layer.side[KVT_KEY];
    const CacheTensor* values = layer.side[KVT_VALUE];
    const CacheTensor* rows = nullptr;
    for (const CacheTensor* t : {keys, values}) {
      if (t != nullptr && t->state() == CacheTensor::State::kRows) rows = t;
    }
    if (rows != nullptr) {
      sum->not_compressed[rows->why_rows()].insert(number);
      continue;
    }
    ++sum->n_compressed;
    sum->layers_of[(keys != nullptr ? keys : values)->codec_id()].insert(number);
    const int64_t dk = keys != nullptr ? keys->head_dim() : 0, dv = values != nullptr ? values->head_dim() : 0;
    sum->head_dims.insert(dk == dv ? std::to_string(dk) : std::to_string(dk) + "/" + std::to_string(dv));
  }
}

// Layers elsewhere, but for those that came to us in the end: fitting runs try several placements.
void add_elsewhere(Summary* sum) {
  std::set<int> ours;
  for (const auto& [codec, layers] : sum->layers_of) ours.insert(layers.begin(), layers.end());
  for (const auto& [reason, layers] : sum->not_compressed) ours.insert(layers.begin(), layers.end());
  for (const auto& [memory, layers] : g_elsewhere) {
    for (const int layer : layers) {
      if (ours.count(layer) != 0) continue;
      ++sum->n_layers;
      sum->not_compressed["the host keeps them in " + memory + " memory (-ngl), as f16"].insert(layer);
    }
  }
}

std::string joined(const std::set<std::string>& parts) {
  std::string all;
  for (const std::string& part : parts) all += (all.empty() ? "" : ", ") + part;
  return all;
}

// {0, 1, 2, 5} -> "0-2,5"
std::string ranges(const std::set<int>& numbers) {
  std::string all;
  for (auto it = numbers.begin(); it != numbers.end();) {
    const int first = *it;
    int last = first;
    while (++it != numbers.end() && *it == last + 1) ++last;
    if (!all.empty()) all += ',';
    all += std::to_string(first);
    if (last > first) all.append("-").append(std::to_string(last));
  }
  return all;
}

std::string number(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", digits, value);
  return text;
}

// "k4v3", or "k4v3, k8v4 in layers 0-1".
std::string codecs_of(const Summary& sum) {
  const kvt_codec_id usual = cache_options().codec;
  std::string text = kvt_codec_name(usual);
  for (const auto& [codec, layers] : sum.layers_of) {
    if (codec != usual) text.append(", ").append(kvt_codec_name(codec)).append(" in layers ") += ranges(layers);
  }
  return text;
}

std::string line_of(const Summary& sum) {
  std::string line;
  if (sum.n_compressed > 0) {
    line = "KV cache compressed: " + codecs_of(sum) + " (" + (g_device == "CPU" ? codec_store_isa() : g_device) + "), " +
           std::to_string(sum.n_compressed) + (sum.n_compressed < sum.n_layers ? " of " + std::to_string(sum.n_layers) : "") +
           " layers, head dim " + joined(sum.head_dims) + ", " + number(sum.token_bytes / 1024, 2) +
           " KiB per token instead of " + number(sum.token_bytes_f16 / 1024, 2) + " (f16): " + number(sum.ratio(), 2) +
           " times smaller";
  }
  for (const auto& [reason, layers] : sum.not_compressed) {
    line +=
        (line.empty() ? "KV cache not compressed in layers " : "; not compressed: layers ") + ranges(layers) + ": " + reason;
  }
  return line;
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      result += ' ';
    } else {
      result += c;
    }
  }
  return result + "\"";
}

void write_json(const Summary& sum) {
  if (g_options.report_path.empty()) return;
  std::string not_compressed;
  for (const auto& [reason, layers] : sum.not_compressed) {
    not_compressed += (not_compressed.empty() ? "" : ", ") + std::string("{\"layers\": ") +
                      quoted(layers.empty() ? "all" : ranges(layers)) + ", \"reason\": " + quoted(reason) + "}";
  }
  const std::string json =
      "{\"codec\": " + quoted(codecs_of(sum)) + ", \"device\": " + quoted(g_device) + ", \"isa\": " + quoted(codec_store_isa()) +
      ", \"kv_bytes_per_token\": " + number(sum.token_bytes, 6) +
      ", \"kv_bytes_per_token_f16\": " + number(sum.token_bytes_f16, 1) + ", \"ratio\": " + number(sum.ratio(), 4) +
      ", \"kv_bytes_fixed\": " + std::to_string(sum.fixed_bytes) +
      (g_largest_score_error >= 0 ? ", \"score_error\": " + number(g_largest_score_error, 3) : "") +
      ", \"layers_compressed\": " + std::to_string(sum.n_compressed) + ", \"layers_total\": " + std::to_string(sum.n_layers) +
      ", \"not_compressed\": [" + not_compressed + "], \"host_ggml_version\": " + quoted(host().ggml_version()) +
      ", \"backend_api\": " + std::to_string(host().api_version) + "}\n";
  // A reader sees the whole file or none.
  const std::string temporary = g_options.report_path + "." + std::to_string(getpid()) + ".tmp";
  std::FILE* file = std::fopen(temporary.c_str(), "w");
  bool is_written = file != nullptr && std::fwrite(json.data(), 1, json.size(), file) == json.size();
  if (file != nullptr) is_written = std::fclose(file) == 0 && is_written;
  if (!is_written || std::rename(temporary.c_str(), g_options.report_path.c_str()) != 0) {
    std::remove(temporary.c_str());
    say_once("cannot write KVTURBO_REPORT=" + g_options.report_path + "; name a file in a folder that can be written");
  }
}

}  // namespace

void report_configure(const PluginOptions& options, const std::string& device) {
  g_options = options;
  g_device = device;
}

void report_layout_changed() { g_has_changed = true; }

void report_layout() {
  if (!g_has_changed.exchange(false)) return;
  const std::lock_guard<std::mutex> lock(g_mutex);
  Summary fresh, all;
  std::set<const CacheBuffer*> live;
  for_each_cache_buffer([&](const CacheBuffer& buffer) {
    if (!is_final(buffer)) return;  // its last first write will call report_layout_changed
    add_buffer(buffer, &all);
    if (g_reported.count(&buffer) == 0) add_buffer(buffer, &fresh);
    live.insert(&buffer);
  });
  g_reported = live;  // forgets buffers that are gone: a new one may get the same address
  if (all.n_layers == 0) return;
  add_elsewhere(&all);
  if (fresh.n_layers > 0) add_elsewhere(&fresh);
  metrics_layout_changed();
  if (fresh.n_layers > 0 && (!g_options.is_quiet || !fresh.not_compressed.empty())) say(line_of(fresh));
  write_json(all);
}

void report_score_error(const CacheTensor& keys, double error) {
  // Measured on healthy models: below 0.5 nats at 4 bits, below 2 at 2 bits. Where a model falls apart, some layer has 3 to 20.
  constexpr double kTooMuch = 2.0;
  if (error >= kTooMuch) ++counters().probe_warnings;
  {
    const std::lock_guard<std::mutex> lock(g_mutex);
    if (error <= g_largest_score_error) return;
    g_largest_score_error = error;
  }
  g_has_changed = true;  // the JSON is written anew before the next graph
  if (error < kTooMuch || g_is_score_error_said.exchange(true)) return;
  const std::string layer = std::to_string(keys.layer()), codec = kvt_codec_name(keys.codec_id());
  const bool has_8_bits = codec.rfind("k8", 0) == 0;
  const std::string remedy = keys.conditioner() == nullptr ? "KVTURBO_CONDITION=on, the default"
                             : has_8_bits                  ? "KVTURBO_LAYERS=" + layer + ":f16"
                                                           : "KVTURBO_CODEC=k8v4, or KVTURBO_LAYERS=" + layer + ":k8v4 for that layer alone";
  say("the keys of layer " + layer + " do not fit " + codec + ": it moves attention scores by " + number(error, 1) +
      " nats (root mean square), and answers will suffer; use " + remedy);
}

void report_layer_elsewhere(const char* cache_name, const char* buffer_name) {
  int layer = 0;
  if (!parse_cache_name(cache_name, nullptr, &layer)) return;
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_elsewhere[buffer_name].insert(layer);
}

void report_not_compressed(const std::string& reason) {
  if (g_is_explained.exchange(true)) return;
  say("KV cache not compressed: " + reason);
  Summary none;
  none.not_compressed[reason];
  write_json(none);
}

void report_at_exit() {
  if (was_cache_allocated() || g_is_explained) return;
  // Programs that load us only to list devices or print help end at once and need no such line.
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const double seconds = static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                         static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
  if (seconds < 0.15) return;
  report_not_compressed(std::string("the host put none on device ") + kDeviceName + "; leave out -nkvo, -ngl and --device");
}

}  // namespace kvt::plugin
