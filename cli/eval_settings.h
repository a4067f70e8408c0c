// What `kvturbo eval` is asked: the caches to compare, and everything else of the command line.
#pragma once

#include "cli_options.h"

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace kvt::cli {

// One kind of cache. Stock: a type of llama.cpp, or two, keys/values: "q4_0", "q8_0/q4_0". Ours: a codec, and variables of the
// plug-in by their names in lower case: "k4v3", "hybrid:condition=off:sinks=0" (KVTURBO_CONDITION, KVTURBO_SINKS). "f16" is
// stock; our own codec of that name is "ours:f16".
struct KvSetting {
  std::string name;  // as it was given
  bool is_ours = false;
  std::string key_type = "f16", value_type = "f16";  // of the host's cache; f16 when it is ours
  std::string codec;
  std::map<std::string, std::string> variables;  // KVTURBO_CONDITION -> off
};

// Throws CliError (usage) for a name that is neither a stock type nor a codec of this build.
KvSetting parse_kv_setting(const std::string& name);

// The settings of a list of names. "all" stands for f16, q8_0, q5_0, q4_0 and every codec of this build but f16.
std::vector<KvSetting> parse_kv_settings(const std::vector<std::string>& names);

// Bits per element of a type of llama.cpp's cache; 0 if it is not known here.
double stock_type_bits(const std::string& type);

// Bits per element of a stock cache, keys and values together.
double stock_bits(const KvSetting& setting);

// Without the variables of ours that the caller's environment has: a setting means the same everywhere.
CommonOptions host_options(const CommonOptions& common, const KvSetting& setting);

// The flags that every program of the host needs for that setting.
std::vector<std::string> host_flags(const KvSetting& setting);

struct EvalOptions {
  CommonOptions common;  // codec, condition and sinks unused
  std::vector<std::string> models;
  std::vector<std::string> settings = {"f16", "q8_0", "q5_0", "q4_0", "k4v3"};
  std::vector<std::string> texts = {"english"};
  std::vector<unsigned> contexts = {1024};
  unsigned n_chunks = 8;
  unsigned n_threads = 0;                                   // 0: all usable cores
  bool decode = false;                                      // token by token instead of in batches
  bool divergence = false, needle = false, greedy = false;  // what to measure; none: divergence
  std::vector<unsigned> depths = {0, 25, 50, 75, 100};      // of the needle, in percent of the context
  unsigned n_predict = 128;                                 // tokens of each greedy text
  bool quick = false;
  bool fresh = false;  // measures again what is in the cache
  bool clean = false;  // removes base logits
  bool json = false;
  std::string plot_folder;
  std::string log_path;  // what the host printed is appended
};

}  // namespace kvt::cli
