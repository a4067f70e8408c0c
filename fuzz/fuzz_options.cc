// The plug-in's environment variables: any values give options within their bounds, or one line that names the variable.

#include <cstdlib>
#include <iterator>
#include <string>

#include "fuzz_input.h"
#include "plugin_options.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static constexpr const char* kNames[] = {"KVTURBO_CODEC", "KVTURBO_CONDITION", "KVTURBO_DEVICE", "KVTURBO_ISA",   "KVTURBO_LAYERS",
                                           "KVTURBO_LOG",   "KVTURBO_RECENT",    "KVTURBO_REPORT", "KVTURBO_SINKS", "KVTURBO_SINK"};
  for (const char* name : kNames) unsetenv(name);
  // Lines: the first byte of each says which variable, the rest is its value.
  std::string line;
  bool is_misspelt = false;
  const auto set = [&] {
    if (line.empty()) return;
    const size_t which = static_cast<uint8_t>(line[0] - '0') % std::size(kNames);
    is_misspelt = is_misspelt || which == std::size(kNames) - 1;
    setenv(kNames[which], line.substr(1).c_str(), 1);
    line.clear();
  };
  for (size_t i = 0; i < size; ++i) {
    if (data[i] == '\n') {
      set();
    } else if (data[i] != 0) {
      line += static_cast<char>(data[i]);
    }
  }
  set();

  kvt::plugin::PluginOptions options;
  std::string error;
  if (!kvt::plugin::read_plugin_options(&options, &error)) {
    FUZZ_CHECK(error.find("KVTURBO_") != std::string::npos);
    return 0;
  }
  FUZZ_CHECK(!is_misspelt && error.empty());
  const kvt::plugin::CacheOptions& cache = options.cache;
  FUZZ_CHECK(kvt_codec_name(cache.codec) != nullptr);
  FUZZ_CHECK(cache.n_exact >= 0 && cache.n_exact <= KVT_MAX_EXACT);
  FUZZ_CHECK(cache.n_recent >= 0 && cache.n_recent <= KVT_MAX_RECENT);
  for (const auto& [layer, codec] : cache.layer_codec) FUZZ_CHECK(layer >= 0 && layer < 1000 && kvt_codec_name(codec) != nullptr);
  return 0;
}
