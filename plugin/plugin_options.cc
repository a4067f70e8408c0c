#include "plugin_options.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <vector>

namespace kvt::plugin {
namespace {

constexpr const char* kPrefix = "KVTURBO_";
// Without the prefix. Those of the kvturbo program are in the environment of the hosts that it starts.
constexpr const char* kVariables[] = {"CODEC", "CONDITION", "DEVICE", "ISA", "LAYERS", "LOG", "METRICS", "RECENT", "REPORT", "SINKS", "STATE"};
constexpr const char* kProgramVariables[] = {"CACHE", "HOST", "MODEL", "PLUGIN"};

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

// What follows "... is unknown": a near miss, and all that is valid, each with the prefix.
std::string remedy(const std::string& given, const std::vector<std::string>& valid, const std::string& prefix) {
  std::string list;
  const std::string* nearest = &valid.front();
  for (const std::string& v : valid) {
    list += (list.empty() ? "" : ", ") + prefix + v;
    if (edit_distance(given, v) < edit_distance(given, *nearest)) nearest = &v;
  }
  const bool is_near = edit_distance(given, *nearest) <= std::max<size_t>(1, nearest->size() / 3);
  return (is_near ? "; did you mean " + prefix + *nearest + "?" : std::string(".")) + " Valid: " + list;
}

std::string bad_value(const char* variable, const std::string& value, const std::vector<std::string>& valid) {
  return std::string(variable) + "=" + value + " is unknown" + remedy(value, valid, "");
}

bool check_names(std::string* error) {
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    if (std::strncmp(*entry, kPrefix, std::strlen(kPrefix)) != 0) continue;
    const std::string full_name(*entry, std::strcspn(*entry, "="));
    const std::string name = full_name.substr(std::strlen(kPrefix));
    const auto is_name = [&](const char* known) { return name == known; };
    if (std::any_of(std::begin(kVariables), std::end(kVariables), is_name)) continue;
    if (std::any_of(std::begin(kProgramVariables), std::end(kProgramVariables), is_name)) continue;
    *error = "the environment variable " + full_name + " is unknown" +
             remedy(name, {std::begin(kVariables), std::end(kVariables)}, kPrefix);
    return false;
  }
  return true;
}

// The value of a variable, "" if it is not set; set but empty counts as not set.
std::string value_of(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr ? value : "";
}

bool read_codec(const char* variable, const std::string& name, kvt_codec_id* id, std::string* error) {
  if (kvt_codec_from_name(name.c_str(), id) == KVT_OK) return true;
  std::vector<std::string> names;
  for (int i = 0; kvt_codec_name(static_cast<kvt_codec_id>(i)) != nullptr; ++i) {
    names.emplace_back(kvt_codec_name(static_cast<kvt_codec_id>(i)));
  }
  *error = bad_value(variable, name, names);
  return false;
}

// "0-1:k8v4,29:f16": ranges of layers, from 0, and their codecs.
bool read_layers(const std::string& text, std::map<int, kvt_codec_id>* codecs, std::string* error) {
  constexpr int kMostLayers = 1000;
  std::stringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    int first = -1, last = -1, n_read = 0;
    if (std::sscanf(part.c_str(), "%3d-%3d:%n", &first, &last, &n_read) != 2 || n_read == 0) {
      n_read = 0;
      if (std::sscanf(part.c_str(), "%3d:%n", &first, &n_read) == 1) last = first;
    }
    if (n_read == 0 || first < 0 || last < first || last >= kMostLayers) {
      *error = "KVTURBO_LAYERS: \"" + part + "\" is not LAYER:CODEC or FIRST-LAST:CODEC, as in 0-1:k8v4,29:k8v4";
      return false;
    }
    kvt_codec_id id;
    if (!read_codec("KVTURBO_LAYERS", part.substr(static_cast<size_t>(n_read)), &id, error)) return false;
    for (int layer = first; layer <= last; ++layer) (*codecs)[layer] = id;
  }
  return true;
}

// Leaves *value alone if the variable is not set.
bool read_number(const char* variable, int largest, int* value, std::string* error) {
  const std::string text = value_of(variable);
  if (text.empty()) return true;
  const bool is_number = text.size() <= 2 && text.find_first_not_of("0123456789") == std::string::npos;
  if (!is_number || std::atoi(text.c_str()) > largest) {
    *error = std::string(variable) + "=" + text + " is not a number from 0 to " + std::to_string(largest);
    return false;
  }
  *value = std::atoi(text.c_str());
  return true;
}

}  // namespace

bool read_plugin_options(PluginOptions* options, std::string* error) {
  if (!check_names(error)) return false;

  const std::string codec = value_of("KVTURBO_CODEC");
  if (!codec.empty() && !read_codec("KVTURBO_CODEC", codec, &options->cache.codec, error)) return false;
  if (!read_layers(value_of("KVTURBO_LAYERS"), &options->cache.layer_codec, error)) return false;

  const std::string condition = value_of("KVTURBO_CONDITION");
  if (!condition.empty() && condition != "on" && condition != "off") {
    *error = bad_value("KVTURBO_CONDITION", condition, {"on", "off"});
    return false;
  }
  options->cache.is_conditioned = condition != "off";

  const std::string state = value_of("KVTURBO_STATE");
  if (!state.empty() && state != "codes" && state != "f16") {
    *error = bad_value("KVTURBO_STATE", state, {"codes", "f16"});
    return false;
  }
  options->cache.has_codes_in_states = state != "f16";

  if (!read_number("KVTURBO_SINKS", KVT_MAX_EXACT, &options->cache.n_exact, error)) return false;
  if (!read_number("KVTURBO_RECENT", KVT_MAX_RECENT, &options->cache.n_recent, error)) return false;

  const std::string device = value_of("KVTURBO_DEVICE");
  if (!device.empty() && device != "cpu") {
    *error = bad_value("KVTURBO_DEVICE", device, {"cpu"});
    return false;
  }
  options->force_cpu = device == "cpu";

  const std::string log = value_of("KVTURBO_LOG");
  if (!log.empty() && log != "quiet" && log != "info") {
    *error = bad_value("KVTURBO_LOG", log, {"info", "quiet"});
    return false;
  }
  options->is_quiet = log == "quiet";

  options->report_path = value_of("KVTURBO_REPORT");
  options->metrics_path = value_of("KVTURBO_METRICS");

  // The library reads KVTURBO_ISA itself; a codec of any head dim tells whether it can be had.
  kvt_codec* probe = nullptr;
  const kvt_status status = kvt_codec_create(options->cache.codec, 64, 64, &probe);
  if (status != KVT_OK) {
    const std::string isa = value_of("KVTURBO_ISA");
    *error = status == KVT_ERROR_UNSUPPORTED_ISA && !isa.empty()
                 ? "KVTURBO_ISA=" + isa + " names kernels that this CPU or build lacks. Unset it, or use scalar, avx2, avxvnni, avx512 or neon"
                 : std::string(kvt_status_string(status));
    return false;
  }
  kvt_codec_destroy(probe);
  return true;
}

}  // namespace kvt::plugin
