// kvturbo serve: this process becomes the stock llama-server with the plug-in, so signals and exit code are the server's own.

#include "cli_error.h"
#include "commands.h"
#include "host_process.h"
#include "model_store.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace kvt::cli {

namespace fs = std::filesystem;

int command_serve(const ServeOptions& options) {
  check_codec_name(options.common.codec);
  check_model(options.model);
  const Host host = find_host(options.common);
  const fs::path plugin = options.stock ? fs::path() : find_plugin(options.common);
  const fs::path model = resolve_model(options.model);

  // With an address among the host's own flags, the host is left to say where it listens.
  const bool own_address = has_flag(options.host_flags, {"--host", "--port"});
  if (!own_address && !port_is_free(options.port)) {
    throw CliError(kExitFailure, fmt::format("port {}", options.port), "in use on 127.0.0.1", "choose another: --port N");
  }

  std::vector<std::string> arguments = {host.server.string(),        "-m", model.string(), "--host", "127.0.0.1", "--port",
                                        std::to_string(options.port)};
  if (options.context_tokens > 0) arguments.insert(arguments.end(), {"-c", std::to_string(options.context_tokens)});
  if (options.n_threads > 0) arguments.insert(arguments.end(), {"--threads", std::to_string(options.n_threads)});
  arguments.insert(arguments.end(), options.host_flags.begin(), options.host_flags.end());

  if (!own_address) {
    fmt::print(stderr, "kvturbo: serving {} at http://127.0.0.1:{} (OpenAI API under /v1) once it is loaded; Ctrl-C ends it\n",
               model.filename().string(), options.port);
  }
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  EnvironmentBlock environment(host_environment(options.common, plugin, options.host_flags));
  signal(SIGPIPE, SIG_DFL);
  execve(argv[0], argv.data(), environment.data());
  throw CliError(kExitFailure, "host " + host.server.string(), std::string("cannot start it: ") + std::strerror(errno), "");
}

}  // namespace kvt::cli
