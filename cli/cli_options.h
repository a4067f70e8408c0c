// What the command line says, for all commands. Each option that has a KVTURBO_* variable means the same as the variable;
// the flag wins.
#pragma once

#include <CLI/CLI.hpp>

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace kvt::cli {

// Options of the cache and of where things are: shared by run, serve and doctor.
struct CommonOptions {
  std::string codec;        // --codec, KVTURBO_CODEC; empty: the plug-in's default
  std::string condition;    // --condition, KVTURBO_CONDITION; empty: on
  std::string sinks;        // --sinks, KVTURBO_SINKS; empty: 4
  std::string recent;       // --recent, KVTURBO_RECENT; empty: 48
  std::string isa;          // --isa, KVTURBO_ISA; empty: the best of this machine
  std::string host_folder;  // --host, KVTURBO_HOST; empty: search (host_finder.h)
  std::string plugin_path;  // --plugin, KVTURBO_PLUGIN; empty: search (host_finder.h)
  // Not an option: further variables that the program sets for the host (a value) or takes away (nullopt).
  std::map<std::string, std::optional<std::string>> variables;
};

struct RunOptions {
  CommonOptions common;
  std::string model;  // -m, KVTURBO_MODEL
  std::string prompt;
  std::string log_path;  // empty: the host's log is removed at the end
  int n_predict = 256;
  int context_tokens = 4096;
  int n_threads = 0;  // 0: the host decides
  double temperature = 0.0;
  std::optional<long> seed;
  bool json = false;
  bool stock = false;
  bool compare = false;
  bool raw = false;
  std::vector<std::string> host_flags;  // what follows "--"
};

struct ServeOptions {
  CommonOptions common;
  std::string model;
  int port = 8080;
  int context_tokens = 0;  // 0: the host decides
  int n_threads = 0;
  bool stock = false;
  std::vector<std::string> host_flags;
};

struct DoctorOptions {
  CommonOptions common;
  bool json = false;
};

struct ModelsOptions {
  std::vector<std::string> fetch;
  bool verify = false;
  bool json = false;
};

// Declares the shared options on a command.
void add_common_options(CLI::App& command, CommonOptions& options);

// Throws CliError (usage) for a codec that this build does not know.
void check_codec_name(const std::string& codec);

// "f16, hybrid, scalar43"
std::string codec_names();

}  // namespace kvt::cli
