// The program kvturbo: reads the command line, runs one command, and prints any error in one line.

#include "child_process.h"
#include "cli_error.h"
#include "command_bench.h"
#include "command_estimate.h"
#include "command_pack.h"
#include "command_eval.h"
#include "commands.h"
#include "kvturbo/kvturbo.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>

namespace kvt::cli {

namespace {

struct CommandLine {
  RunOptions run;
  ServeOptions serve;
  DoctorOptions doctor;
  ModelsOptions models;
  EstimateOptions estimate;
  PackOptions pack, unpack;
  BenchOptions bench;
  EvalOptions eval;
};

CLI::App* declare_run(CLI::App& app, RunOptions& run) {
  CLI::App* command = app.add_subcommand("run", "answer one prompt with the compressed cache and print what it cost");
  command->add_option("-m,--model", run.model, "a name of `kvturbo models`, or a GGUF file")
      ->envname("KVTURBO_MODEL")
      ->required()
      ->type_name("MODEL");
  command->add_option("-p,--prompt", run.prompt, "the prompt")->required()->type_name("TEXT");
  command->add_option("-n", run.n_predict, "most tokens to generate (256)")->check(CLI::Range(1, 1 << 24))->type_name("N");
  add_common_options(*command, run.common);
  command->add_option("-c", run.context_tokens, "context in tokens (4096)")->check(CLI::Range(1, 1 << 24))->type_name("N");
  command->add_option("-t,--threads", run.n_threads, "CPU threads (the host decides)")
      ->check(CLI::Range(1, 4096))
      ->type_name("N");
  command->add_option("--temp", run.temperature, "temperature; 0 takes the likeliest token each time (0)")
      ->check(CLI::Range(0.0, 100.0))
      ->type_name("T");
  command->add_option("--seed", run.seed, "seed of the sampler, for --temp above 0")->type_name("N");
  command->add_flag("--json", run.json, "the last line of stdout is one JSON object with the figures");
  command->add_flag("--raw", run.raw, "continue the prompt as it is, without the model's chat template");
  command->add_flag("--stock", run.stock, "leave the plug-in out");
  command->add_flag("--compare", run.compare, "run the stock f16 cache first and print its speed beside ours");
  command->add_option("--log", run.log_path, "keep the host's log in this file")->type_name("FILE");
  command->footer(
      "What follows -- goes to llama-server.\nExample: kvturbo run -m smollm2-135m -p \"What is the capital of France?\" --codec hybrid "
      "-- --mlock");
  return command;
}

CLI::App* declare_serve(CLI::App& app, ServeOptions& serve) {
  CLI::App* command = app.add_subcommand("serve", "run the stock llama-server with the compressed cache");
  command->add_option("-m,--model", serve.model, "a name of `kvturbo models`, or a GGUF file")
      ->envname("KVTURBO_MODEL")
      ->required()
      ->type_name("MODEL");
  command->add_option("--port", serve.port, "port on 127.0.0.1 (8080)")->check(CLI::Range(1, 65535))->type_name("PORT");
  add_common_options(*command, serve.common);
  command->add_option("-c", serve.context_tokens, "context in tokens (the host decides)")
      ->check(CLI::Range(1, 1 << 24))
      ->type_name("N");
  command->add_option("-t,--threads", serve.n_threads, "CPU threads (the host decides)")
      ->check(CLI::Range(1, 4096))
      ->type_name("N");
  command->add_flag("--stock", serve.stock, "leave the plug-in out");
  command->footer(
      "What follows -- goes to llama-server.\nExample: kvturbo serve -m smollm2-135m --port 8080 -- --parallel 4 --host "
      "0.0.0.0");
  return command;
}

CLI::App* declare_doctor(CLI::App& app, DoctorOptions& doctor) {
  CLI::App* command = app.add_subcommand("doctor", "say what works on this machine; exit code 1 if something needed does not");
  add_common_options(*command, doctor.common);
  command->add_flag("--json", doctor.json, "print one JSON object");
  command->footer("Example: kvturbo doctor --host ~/llama.cpp/build/bin");
  return command;
}

CLI::App* declare_models(CLI::App& app, ModelsOptions& models) {
  CLI::App* command = app.add_subcommand("models", "list the models known by name; fetch and verify them");
  command->add_option("--fetch", models.fetch, "fetch these models unless they are cached and intact; print their paths")
      ->type_name("NAME");
  command->add_flag("--verify", models.verify, "check the checksums of the cached models");
  command->add_flag("--json", models.json, "print the list as JSON");
  command->footer("Example: kvturbo models --fetch smollm2-135m");
  return command;
}

int run_command_line(int argc, char** argv) {
  // Everything after the first "--" belongs to the host and is not ours to parse.
  char** const end = argv + argc;
  char** const separator = std::find_if(argv, end, [](const char* argument) { return std::string(argument) == "--"; });
  const std::vector<std::string> host_flags(separator == end ? end : separator + 1, end);

  // llama-server's spelling, which CLI11 would read as -n p.
  static char parallel[] = "--parallel";
  const bool is_estimate = argc > 1 && std::string(argv[1]) == "estimate";
  for (char** argument = argv; is_estimate && argument < separator; ++argument) {
    if (std::string(*argument) == "-np") *argument = parallel;
  }

  CLI::App app("kvturbo: stock llama.cpp with a compressed KV cache", "kvturbo");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("kvturbo ") + kvt_version());
  app.footer("Example: kvturbo run -m smollm2-135m -p \"What is the capital of France?\"\n`kvturbo COMMAND --help` explains a command.");
  CommandLine line;
  const CLI::App* run = declare_run(app, line.run);
  const CLI::App* serve = declare_serve(app, line.serve);
  const CLI::App* doctor = declare_doctor(app, line.doctor);
  const CLI::App* models = declare_models(app, line.models);
  const CLI::App* estimate = declare_estimate(app, line.estimate);
  const CLI::App* pack = declare_pack(app, line.pack);
  const CLI::App* unpack = declare_unpack(app, line.unpack);
  const CLI::App* bench = declare_bench(app, line.bench);
  const CLI::App* eval = declare_eval(app, line.eval);
  try {
    app.parse(static_cast<int>(separator - argv), argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);  // --help, --version
  } catch (const CLI::ParseError& error) {
    const auto chosen = app.get_subcommands();
    if (chosen.empty() && argc > 1 && argv[1][0] != '-') {
      throw CliError(kExitUsage, std::string("command '") + argv[1] + "'", "unknown",
                     "known commands: run, serve, doctor, models, estimate, bench, eval, pack, unpack");
    }
    const std::string command = chosen.empty() ? "kvturbo" : "kvturbo " + chosen.front()->get_name();
    std::string why = error.what();
    std::replace(why.begin(), why.end(), '\n', ' ');
    throw CliError(kExitUsage, "command line", why, "see " + command + " --help");
  }
  if (!host_flags.empty() && !*run && !*serve) {
    throw CliError(kExitUsage, "command line", "only run and serve take flags for the host after --", "");
  }
  line.run.host_flags = host_flags;
  line.serve.host_flags = host_flags;
  if (*run) return command_run(line.run);
  if (*serve) return command_serve(line.serve);
  if (*doctor) return command_doctor(line.doctor);
  if (*models) return command_models(line.models);
  if (*estimate) return command_estimate(line.estimate);
  if (*pack) return command_pack(line.pack);
  if (*unpack) return command_unpack(line.unpack);
  if (*bench) return command_bench(line.bench);
  if (*eval) return command_eval(line.eval);
  return kExitUsage;
}

}  // namespace

}  // namespace kvt::cli

int main(int argc, char** argv) {
  using namespace kvt::cli;
  install_signal_handlers();
  int exit_code = kExitFailure;
  try {
    exit_code = run_command_line(argc, argv);
  } catch (const CliError& error) {
    if (received_signal() == 0) fmt::print(stderr, "kvturbo: {}\n", error.what());
    exit_code = error.exit_code();
  } catch (const std::exception& error) {
    fmt::print(stderr, "kvturbo: unexpected: {}\n", error.what());
  }
  // Everything is cleaned up by now: end by the signal, as callers expect.
  if (const int number = received_signal(); number != 0) {
    signal(number, SIG_DFL);
    raise(number);
  }
  return exit_code;
}
