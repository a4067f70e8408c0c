#include "eval_settings.h"

#include "cli_error.h"
#include "kvturbo/kvturbo.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstring>

namespace kvt::cli {

namespace {

// Types that llama.cpp takes for its cache, with all-in bits per element.
const std::map<std::string, double>& stock_types() {
  static const std::map<std::string, double> types = {{"f32", 32},   {"f16", 16}, {"bf16", 16},    {"q8_0", 8.5}, {"q5_1", 6},
                                                      {"q5_0", 5.5}, {"q4_1", 5}, {"iq4_nl", 4.5}, {"q4_0", 4.5}};
  return types;
}

bool is_codec(const std::string& name) {
  kvt_codec_id id;
  return kvt_codec_from_name(name.c_str(), &id) == KVT_OK;
}

[[noreturn]] void refuse(const std::string& name) {
  std::string types;
  for (const auto& [type, bits] : stock_types()) types += (types.empty() ? "" : ", ") + type;
  throw CliError(
      kExitUsage, "--kv '" + name + "'", "neither a stock cache type nor a codec",
      "stock: " + types + ", or two as K/V; ours: " + codec_names() + ", with options as in k4v3:condition=off:sinks=0");
}

// "k4v3:condition=off" -> "k4v3", "condition=off"
std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  for (std::size_t end; (end = text.find(separator, begin)) != std::string::npos; begin = end + 1) {
    parts.push_back(text.substr(begin, end - begin));
  }
  parts.push_back(text.substr(begin));
  return parts;
}

}  // namespace

KvSetting parse_kv_setting(const std::string& name) {
  KvSetting setting;
  setting.name = name;
  const bool is_forced = name.starts_with("ours:");
  const std::vector<std::string> parts = split(is_forced ? name.substr(5) : name, ':');
  const std::vector<std::string> types = split(parts[0], '/');
  if (!is_forced && types.size() <= 2 && stock_types().contains(types.front()) && stock_types().contains(types.back())) {
    if (parts.size() > 1) refuse(name);
    setting.key_type = types.front();
    setting.value_type = types.back();
    return setting;
  }
  if (!is_codec(parts[0])) refuse(name);
  setting.is_ours = true;
  setting.codec = parts[0];
  for (std::size_t i = 1; i < parts.size(); ++i) {
    const std::size_t equals = parts[i].find('=');
    if (equals == 0 || equals == std::string::npos) refuse(name);
    std::string variable = "KVTURBO_" + parts[i].substr(0, equals);
    std::transform(variable.begin(), variable.end(), variable.begin(), [](unsigned char c) { return std::toupper(c); });
    setting.variables[variable] = parts[i].substr(equals + 1);
  }
  return setting;
}

std::vector<KvSetting> parse_kv_settings(const std::vector<std::string>& names) {
  std::vector<KvSetting> settings;
  for (const std::string& name : names) {
    if (name != "all") {
      settings.push_back(parse_kv_setting(name));
      continue;
    }
    for (const char* type : {"f16", "q8_0", "q5_0", "q4_0"}) settings.push_back(parse_kv_setting(type));
    for (int id = KVT_CODEC_F16 + 1; const char* codec = kvt_codec_name(static_cast<kvt_codec_id>(id)); ++id) {
      settings.push_back(parse_kv_setting(codec));
    }
  }
  return settings;
}

double stock_type_bits(const std::string& type) {
  const auto found = stock_types().find(type);
  return found != stock_types().end() ? found->second : 0;
}

double stock_bits(const KvSetting& setting) {
  return (stock_types().at(setting.key_type) + stock_types().at(setting.value_type)) / 2;
}

CommonOptions host_options(const CommonOptions& common, const KvSetting& setting) {
  CommonOptions options = common;
  for (char** entry = environ; *entry; ++entry) {
    const std::string name(*entry, std::strcspn(*entry, "="));
    if (name.starts_with("KVTURBO_") && name != "KVTURBO_DEVICE") options.variables[name] = std::nullopt;
  }
  options.codec = setting.codec;
  for (const auto& [name, value] : setting.variables) options.variables[name] = value;
  return options;
}

std::vector<std::string> host_flags(const KvSetting& setting) {
  return {"-fa", "on", "-ctk", setting.key_type, "-ctv", setting.value_type};
}

}  // namespace kvt::cli
