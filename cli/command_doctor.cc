// kvturbo doctor: what works on this machine, what does not, and what to do about it.

#include "bench_support.h"
#include "cli_error.h"
#include "commands.h"
#include "host_finder.h"
#include "host_probe.h"
#include "kvturbo/kvturbo.h"
#include "machine_info.h"
#include "model_store.h"
#include "self_test.h"
#include "terminal_output.h"

#include <fmt/format.h>

#include <array>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

extern char** environ;

namespace kvt::cli {

namespace fs = std::filesystem;

namespace {

using Json = nlohmann::ordered_json;

struct Problem {
  std::string text, remedy;
};

struct Findings {
  std::vector<std::string> cpu_features;
  std::vector<std::string> gpu_names;
  MemoryInfo memory;
  std::vector<SelfTestResult> self_tests;
  double self_test_seconds = 0;
  std::string kernels;
  fs::path host_path;
  std::string host_origin;
  HostVersions versions;
  fs::path plugin_path;
  std::string plugin_device;
  std::vector<std::string> options;  // KVTURBO_* variables and flags in force
  std::vector<Problem> problems;
};

// The features that a kernel of ours uses or will use; names as in /proc/cpuinfo.
std::vector<std::string> interesting_cpu_features() {
  static constexpr std::array kFeatures = {"avx2",     "fma",         "f16c",        "bmi2",     "avx512f",
                                           "avx512bw", "avx512_vnni", "avx512_vbmi", "avx_vnni", "amx_int8",
                                           "asimddp",  "asimdhp",     "i8mm",        "sve"};
  std::vector<std::string> found;
  std::istringstream words(cpu_flags_line());
  for (std::string word; words >> word;) {
    for (const char* feature : kFeatures) {
      if (word == feature) found.push_back(word);
    }
  }
  return found;
}

void find_kernels(Findings& findings) {
  kvt_codec* codec = nullptr;
  const kvt_status status = kvt_codec_create(KVT_CODEC_HYBRID, 64, 64, &codec);
  if (status == KVT_OK) {
    findings.kernels = kvt_codec_isa(codec);
    kvt_codec_destroy(codec);
    return;
  }
  const char* isa = std::getenv("KVTURBO_ISA");
  throw CliError(kExitFailure, std::string("kernels ") + (isa ? isa : ""), kvt_status_string(status),
                 "unset KVTURBO_ISA or --isa to take the best ones");
}

void find_options(Findings& findings, const CommonOptions& options) {
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    if (text.starts_with("KVTURBO_")) findings.options.push_back(text);
  }
  // A flag replaces the variable of the same name.
  const auto set = [&](const std::string& variable, const std::string& value) {
    if (value.empty()) return;
    std::erase_if(findings.options, [&](const std::string& text) { return text.starts_with(variable + "="); });
    findings.options.push_back(variable + "=" + value);
  };
  set("KVTURBO_CODEC", options.codec);
  set("KVTURBO_CONDITION", options.condition);
  set("KVTURBO_SINKS", options.sinks);
  set("KVTURBO_RECENT", options.recent);
  set("KVTURBO_ISA", options.isa);
  set("KVTURBO_HOST", options.host_folder);
  set("KVTURBO_PLUGIN", options.plugin_path);
}

// Runs one step; a failure becomes a finding, so that the other steps still run.
template <typename Step>
void examine(Findings& findings, const Step& step) {
  try {
    step();
  } catch (const CliError& error) {
    findings.problems.push_back({error.what(), error.remedy()});
  }
}

void test_library(Findings& findings) {
  StatusLine status;
  const double start = seconds_now();
  findings.self_tests = run_self_test([&](const std::string& isa) { status.show("self-test: " + isa); });
  findings.self_test_seconds = seconds_now() - start;
  for (const SelfTestResult& test : findings.self_tests) {
    if (test.problem.empty()) continue;
    examine(findings, [&] {
      throw CliError(kExitFailure, "self-test of " + test.isa + " kernels", test.problem,
                     "use others with KVTURBO_ISA=scalar, and please report this with the output of kvturbo doctor --json");
    });
  }
}

Findings examine_all(const CommonOptions& options) {
  Findings findings;
  findings.cpu_features = interesting_cpu_features();
  find_options(findings, options);
  examine(findings, [&] { check_codec_name(options.codec); });
  examine(findings, [&] { find_kernels(findings); });
  test_library(findings);
  findings.gpu_names = gpus();
  findings.memory = memory_info();
  Host host;
  examine(findings, [&] {
    host = find_host(options);
    findings.host_path = host.server;
    findings.host_origin = host.origin;
    findings.versions = probe_host(host);
    if (!findings.versions.problem.empty()) {
      throw CliError(kExitFailure, "host " + host.server.string(), findings.versions.problem,
                     "get one that runs here with scripts/get_host.sh");
    }
  });
  examine(findings, [&] {
    findings.plugin_path = find_plugin(options);
    if (findings.host_path.empty() || !findings.versions.problem.empty()) return;
    const PluginProbe probe = probe_plugin(host, findings.plugin_path, options);
    findings.plugin_device = probe.device;
    if (probe.device.empty()) {
      throw CliError(kExitFailure, "plug-in", "it does not load: " + probe.why_not,
                     "the pinned host of scripts/get_host.sh is known to work");
    }
  });
  for (const CatalogueModel& model : model_catalogue()) {
    examine(findings, [&] {
      if (cache_state(model) == CacheState::kDamaged) {
        throw CliError(kExitFailure, "model " + model.name, "the cached file has the wrong size",
                       "fetch it again: kvturbo models --fetch " + model.name);
      }
    });
  }
  return findings;
}

std::string join(const std::vector<std::string>& words, const char* separator) {
  return fmt::format("{}", fmt::join(words, separator));
}

std::vector<std::string> cached_models() {
  std::vector<std::string> names;
  for (const CatalogueModel& model : model_catalogue()) {
    if (cache_state(model) == CacheState::kCached) names.push_back(model.name);
  }
  return names;
}

void print_row(const char* name, const std::string& value) { fmt::print("{:<10}{}\n", name, value); }

std::string host_text(const Findings& findings) {
  if (findings.host_path.empty()) return "none found";
  return fmt::format("{} ({})", findings.host_path.string(), findings.host_origin);
}

std::string versions_text(const HostVersions& versions) {
  const std::string build = versions.build.empty() ? "build unknown" : "build " + versions.build;
  if (versions.ggml_version.empty()) return build + ", ggml inside the program (its version cannot be asked)";
  const std::string api = versions.backend_api == 0 ? "unknown" : std::to_string(versions.backend_api);
  return fmt::format("{}, ggml {}, backend API {}", build, versions.ggml_version, api);
}

std::string plugin_text(const Findings& findings) {
  if (findings.plugin_path.empty()) return "none found";
  if (findings.plugin_device.empty())
    return findings.plugin_path.string() + (findings.host_path.empty() ? "" : ": does not load");
  return fmt::format("{}: loads as {}", findings.plugin_path.string(), findings.plugin_device);
}

std::string self_test_text(const Findings& findings) {
  std::vector<std::string> tests;
  for (const SelfTestResult& test : findings.self_tests) {
    tests.push_back(test.problem.empty() ? fmt::format("{} ok (attention within {:.4f})", test.isa, test.attention_error)
                                         : test.isa + " FAILED");
  }
  return fmt::format("{}; {} pages each, {:.1f} s", join(tests, ", "), findings.self_tests.front().n_pages,
                     findings.self_test_seconds);
}

std::string memory_text(const MemoryInfo& memory) {
  return fmt::format(
      "{}, {} available{}", gib(memory.total_bytes), gib(memory.available_bytes),
      memory.address_space_bytes == 0 ? "" : "; ulimit -v allows " + gib(memory.address_space_bytes) + " of addresses");
}

// What to do now, in one line.
std::string next_step(const Findings& findings) {
  for (const Problem& problem : findings.problems) {
    if (!problem.remedy.empty()) return problem.remedy;
  }
  return findings.problems.empty() ? "kvturbo run -m smollm2-135m -p \"What is the capital of France?\""
                                   : "see the first problem";
}

void print_text(const Findings& findings) {
  print_row("version", fmt::format("kvturbo {}, page format {}", kvt_version(), KVT_FORMAT_VERSION));
  print_row("cpu", fmt::format("{}, {} {} for this process", cpu_model_name(), usable_cores(),
                               usable_cores() == 1 ? "core" : "cores"));
  print_row("",
            findings.cpu_features.empty() ? "no instruction set that a fast kernel uses" : join(findings.cpu_features, " "));
  print_row("kernels", findings.kernels.empty() ? "none" : findings.kernels);
  print_row("self-test", self_test_text(findings));
  print_row("codecs", codec_names());
  print_row("gpu", findings.gpu_names.empty() ? "none found" : join(findings.gpu_names, "; "));
  print_row("memory", memory_text(findings.memory));
  print_row("host", host_text(findings));
  if (!findings.host_path.empty() && findings.versions.problem.empty()) {
    print_row("", versions_text(findings.versions));
    if (findings.versions.needs_device_flag) {
      print_row("", "on its own it needs --device KVTURBO0 to look at GGML_BACKEND_PATH; run and serve see to that");
    }
  }
  print_row("plug-in", plugin_text(findings));
  const std::vector<std::string> models = cached_models();
  print_row("models", fmt::format("{} in {}", models.empty() ? "none cached" : join(models, ", "), models_folder().string()));
  print_row("options", findings.options.empty() ? "defaults" : join(findings.options, " "));
  for (const Problem& problem : findings.problems) fmt::print("problem: {}\n", problem.text);
  fmt::print("{}{}\n", findings.problems.empty() ? "all good: try " : "to do: ", next_step(findings));
}

void print_json(const Findings& findings) {
  Json json;
  json["ok"] = findings.problems.empty();
  json["version"] = kvt_version();
  json["format_version"] = KVT_FORMAT_VERSION;
  json["cpu"] = cpu_model_name();
  json["cores"] = usable_cores();
  json["cpu_features"] = findings.cpu_features;
  json["gpus"] = findings.gpu_names;
  json["memory_bytes"] = findings.memory.total_bytes;
  json["memory_available_bytes"] = findings.memory.available_bytes;
  json["kernels"] = findings.kernels;
  json["self_test"] = Json::array();
  for (const SelfTestResult& test : findings.self_tests) {
    json["self_test"].push_back(
        {{"isa", test.isa}, {"ok", test.problem.empty()}, {"pages", test.n_pages}, {"attention_error", test.attention_error}});
  }
  json["codecs"] = codec_names();
  json["host"] = findings.host_path.string();
  json["host_origin"] = findings.host_origin;
  json["host_build"] = findings.versions.build;
  json["host_ggml_version"] = findings.versions.ggml_version;
  json["backend_api"] = findings.versions.backend_api;
  json["needs_device_flag"] = findings.versions.needs_device_flag;
  json["plugin"] = findings.plugin_path.string();
  json["plugin_device"] = findings.plugin_device;
  json["models"] = cached_models();
  json["options"] = findings.options;
  json["problems"] = Json::array();
  for (const Problem& problem : findings.problems) json["problems"].push_back(problem.text);
  json["next"] = next_step(findings);
  fmt::print("{}\n", json.dump(2));
}

}  // namespace

int command_doctor(const DoctorOptions& options) {
  // The library reads the variable when the first codec is made.
  if (!options.common.isa.empty()) setenv("KVTURBO_ISA", options.common.isa.c_str(), 1);
  const Findings findings = examine_all(options.common);
  if (options.json) {
    print_json(findings);
  } else {
    print_text(findings);
  }
  return findings.problems.empty() ? kExitOk : kExitFailure;
}

}  // namespace kvt::cli
