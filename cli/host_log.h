// Reads llama.cpp's log for the one line that says what went wrong.
#pragma once

#include "cli_error.h"

#include <filesystem>
#include <optional>
#include <string>

namespace kvt::cli {

bool is_port_conflict(const std::string& log);

// Why the host did not load the plug-in; nullopt if the log says nothing of it.
std::optional<std::string> plugin_load_failure(const std::string& log);

// The last line of the plug-in itself, without its "kvturbo: "; nullopt if it printed none.
std::optional<std::string> last_plugin_line(const std::string& log);

// The error for a host that ended before its work was done. how_it_ended: "exit code 1".
CliError explain_host_failure(const std::string& log, const std::filesystem::path& model, const std::string& how_it_ended);

}  // namespace kvt::cli
