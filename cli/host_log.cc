#include "host_log.h"

#include <array>
#include <cstring>
#include <regex>
#include <sstream>
#include <vector>

namespace kvt::cli {

namespace {

constexpr const char* kPluginPrefix = "kvturbo: ";
constexpr const char* kFarewell = "kvturbo: at exit: ";  // figures, which explain no failure

// llama.cpp b11434 begins its lines with a time, a level letter and sometimes a component: "0.00.012.402 E srv  load_model:
// ...". Older ones have no such prefix; then every line has level '?'.
struct LogLine {
  char level = '?';
  std::string text;
};

std::vector<LogLine> parse_log(const std::string& log) {
  static const std::regex prefix(R"(^\d+\.\d+\.\d+\.\d+ ([A-Z]) (?:(?:srv|cmn|slot|que|main|res) +)?\s*(.*)$)");
  std::vector<LogLine> lines;
  std::istringstream stream(log);
  for (std::string line; std::getline(stream, line);) {
    std::smatch match;
    if (line.starts_with(kFarewell)) continue;
    if (std::regex_match(line, match, prefix)) {
      lines.push_back({match[1].str()[0], match[2].str()});
    } else if (!line.empty()) {
      lines.push_back({'?', line});
    }
  }
  return lines;
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// "llama_model_load: error loading model: X" -> "X"
std::string without_function_names(std::string text) {
  static const std::regex name(R"(^(?:[A-Za-z_][A-Za-z0-9_]*|error loading model): +)");
  std::smatch match;
  while (std::regex_search(text, match, name)) text = match.suffix();
  return text;
}

struct KnownFailure {
  const char* part;  // of the host's line
  const char* remedy;
};

constexpr std::array<KnownFailure, 8> kKnownFailures{{
    {"not within the file bounds", "the file is truncated: get it again"},
    {"failed to read", "the file is truncated or damaged: get it again"},
    {"invalid magic", "give a model file in GGUF format"},
    {"unknown model architecture", "this host is older than the model: use a newer llama.cpp with --host DIR"},
    {"invalid argument", "see llama-server --help for the flags after --"},
    {"failed to allocate", "use a smaller context: -c N"},
    {"exceeds the available context size", "use a larger context: -c N"},
    {"GGML_ASSERT", "run again with --log FILE and report the file"},
}};

}  // namespace

bool is_port_conflict(const std::string& log) { return contains(log, "couldn't bind"); }

std::optional<std::string> plugin_load_failure(const std::string& log) {
  for (const LogLine& line : parse_log(log)) {
    if (!contains(line.text, "kvturbo") || !contains(line.text, "load_backend: failed")) continue;
    // The host only sees that the plug-in gave up; the plug-in says why.
    const std::optional<std::string> own_words = last_plugin_line(log);
    return own_words ? *own_words : without_function_names(line.text);
  }
  return std::nullopt;
}

std::optional<std::string> last_plugin_line(const std::string& log) {
  std::optional<std::string> last;
  for (const LogLine& line : parse_log(log)) {
    if (line.text.starts_with(kPluginPrefix)) last = line.text.substr(std::strlen(kPluginPrefix));
  }
  return last;
}

CliError explain_host_failure(const std::string& log, const std::filesystem::path& model, const std::string& how_it_ended) {
  const std::vector<LogLine> lines = parse_log(log);
  if (const auto failure = plugin_load_failure(log)) return {kExitFailure, "plug-in", *failure, "see `kvturbo doctor`"};
  // Hosts that name devices refuse ours when nothing loaded it; some say nothing of the loading.
  if (contains(log, "invalid device: KVTURBO")) return {kExitFailure, "plug-in", "the host did not load it", "see `kvturbo doctor`"};
  const std::string what = "host failed on " + model.filename().string();
  // The first complaint is the cause, what follows it are consequences.
  for (const KnownFailure& known : kKnownFailures) {
    for (const LogLine& line : lines) {
      if (contains(line.text, known.part)) return {kExitFailure, what, without_function_names(line.text), known.remedy};
    }
  }
  // The plug-in ends the host when its options are wrong; its line names the remedy.
  if (!lines.empty() && lines.back().text.starts_with(kPluginPrefix)) {
    return {kExitFailure, "plug-in", lines.back().text.substr(std::strlen(kPluginPrefix)), ""};
  }
  const std::string remedy = "run again with --log FILE to keep the host's log";
  for (const LogLine& line : lines) {
    if (line.level == 'E') return {kExitFailure, what, without_function_names(line.text), remedy};
  }
  const std::string last = lines.empty() ? "it printed nothing" : "its last line: " + lines.back().text;
  return {kExitFailure, what, how_it_ended + ", " + last, remedy};
}

}  // namespace kvt::cli
