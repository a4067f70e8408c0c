#include "command_eval.h"

#include "bench_support.h"
#include "cli_error.h"
#include "eval_plot.h"
#include "eval_report.h"
#include "kvturbo/kvturbo.h"
#include "model_store.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvt::cli {

namespace {

// Stock f16 and q4_0, and ours: within 50 s on two cores with SmolLM2, the model unless one is given.
void make_quick(EvalOptions& options) {
  if (options.models.empty()) options.models = {"smollm2-135m"};
  options.settings = {"f16", "q4_0", "k4v3"};
  options.texts = {"english"};
  options.contexts = {1024};
  options.n_chunks = 2;
}

void check_contexts(const EvalOptions& options, const std::vector<EvalModel>& models) {
  for (const EvalModel& model : models) {
    for (const unsigned n_ctx : options.contexts) {
      if (model.shape.context_length == 0 || n_ctx <= model.shape.context_length) continue;
      throw CliError(kExitUsage, fmt::format("-c {}", n_ctx),
                     fmt::format("{} was trained on contexts of {} tokens", model.name, model.shape.context_length),
                     "give a smaller -c");
    }
  }
}

void print_header(const EvalHost& host) {
  fmt::print("kvturbo {} eval; llama.cpp {}; {}, {} threads\n\n", kvt_version(), host.version(), cpu_model_name(),
             host.n_threads());
}

}  // namespace

CLI::App* declare_eval(CLI::App& app, EvalOptions& options) {
  CLI::App* command =
      app.add_subcommand("eval", "measure what a cache does to a model's answers, with the host's own programs");
  command->add_option("-m,--model", options.models, "names of `kvturbo models`, or GGUF files")
      ->envname("KVTURBO_MODEL")
      ->delimiter(',')
      ->type_name("MODEL,...");
  command
      ->add_option("--kv", options.settings,
                   "caches: stock types (q4_0, or q8_0/q4_0 for keys/values), codecs with options "
                   "(k4v3:condition=off:sinks=0), ours:f16, all (f16,q8_0,q5_0,q4_0,k4v3)")
      ->delimiter(',')
      ->type_name("NAME,...");
  command->add_option("--text", options.texts, "english, code, or files (english)")->delimiter(',')->type_name("TEXT,...");
  command->add_option("-c", options.contexts, "contexts in tokens (1024)")
      ->delimiter(',')
      ->check(CLI::Range(128, 1 << 20))
      ->type_name("N,...");
  command->add_option("--chunks", options.n_chunks, "chunks of the text, each fills the context (8)")
      ->check(CLI::Range(1, 100000))
      ->type_name("N");
  command->add_flag("--kld", options.divergence, "KLD, same top token, perplexity ratio (the default)");
  command->add_flag("--needle", options.needle, "a pass key hidden in the text");
  command->add_flag("--greedy", options.greedy, "tokens until greedy text differs from stock f16's");
  command->add_option("--depths", options.depths, "places of the pass key, in percent of the context (0,25,50,75,100)")
      ->delimiter(',')
      ->check(CLI::Range(0, 100))
      ->type_name("N,...");
  command->add_option("-n", options.n_predict, "tokens of each greedy text (128)")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
  command->add_flag("--decode", options.decode, "KLD token by token (-ub 1), the path of generation: slow");
  command->add_flag("--quick", options.quick, "SmolLM2 with f16, q4_0 and k4v3 on 2 x 1024 tokens: within 50 s on two cores")
      ->excludes("--kv", "--text", "-c", "--chunks", "--needle", "--greedy", "--decode");
  command->add_option("-t,--threads", options.n_threads, "threads (all)")->check(CLI::Range(1, 4096))->type_name("N");
  command->add_option("--isa", options.common.isa, "kernel table of ours (the best)")
      ->envname("KVTURBO_ISA")
      ->type_name("NAME");
  command->add_option("--host", options.common.host_folder, "folder with llama.cpp's programs, instead of searching")
      ->envname("KVTURBO_HOST")
      ->type_name("DIR");
  command->add_option("--plugin", options.common.plugin_path, "path of libggml-kvturbo.so, instead of searching")
      ->envname("KVTURBO_PLUGIN")
      ->type_name("FILE");
  CLI::Option* json = command->add_flag("--json", options.json, "print JSON instead of tables");
  command->add_flag("--markdown")->description("print markdown tables (the default)")->excludes(json);
  command->add_option("--plot", options.plot_folder, "write charts as SVG into this folder")->type_name("DIR");
  command->add_flag("--fresh", options.fresh, "measure again what is in the cache");
  command->add_flag("--clean", options.clean, "remove the base logits from the cache, at the end or, without -m, at once");
  command->add_option("--log", options.log_path, "append what the host prints to this file")->type_name("FILE");
  command->footer(
      "Finished measurements are kept in the cache: an interrupted run goes on where it stopped. So are the logits of stock "
      "f16, 50 "
      "to 270 MB for 1024 tokens of a small model.\nExample: kvturbo eval -m smollm2-135m --kv "
      "f16,q4_0,k4v3,hybrid:condition=off "
      "--text english,code -c 1024,4096");
  return command;
}

int command_eval(EvalOptions options) {
  if (options.clean && options.models.empty() && !options.quick) {
    fmt::print(stderr, "kvturbo: removed {} MB of base logits\n", remove_logits() / 1000000);
    return kExitOk;
  }
  if (options.quick) make_quick(options);
  if (options.models.empty()) throw CliError(kExitUsage, "command line", "--model is required", "see kvturbo eval --help");
  if (!options.needle && !options.greedy) options.divergence = true;

  // All that can be wrong is found before anything is measured.
  std::vector<KvSetting> settings = parse_kv_settings(options.settings);
  for (const std::string& model : options.models) check_model(model);
  const bool has_ours = std::any_of(settings.begin(), settings.end(), [](const KvSetting& setting) { return setting.is_ours; });
  const EvalHost host(options, has_ours);
  if (options.divergence) host.program("llama-perplexity");
  EvalStore store(options.fresh);
  EvalInputs inputs{options, host, store, {}, {}, std::move(settings)};
  for (const std::string& text : options.texts) inputs.texts.push_back(find_text(text));
  for (const std::string& model : options.models) inputs.models.push_back(find_eval_model(model));
  check_contexts(options, inputs.models);

  EvalResults results;
  if (options.divergence) results.divergence = measure_divergence(inputs);
  if (options.needle) results.needle = measure_needle(inputs);
  if (options.greedy) results.greedy = measure_greedy(inputs);
  if (options.json) {
    fmt::print("{}", eval_json(results));
  } else {
    print_header(host);
    fmt::print("{}", eval_markdown(results));
  }
  std::fflush(stdout);
  for (const std::string& warning : eval_warnings(results)) fmt::print(stderr, "kvturbo: {}\n", warning);
  if (!options.plot_folder.empty()) {
    for (const auto& path : write_eval_plots(options.plot_folder, results.divergence))
      fmt::print(stderr, "kvturbo: {}\n", path.string());
  }
  if (options.clean) remove_logits();
  if (const std::uint64_t bytes = logits_bytes(); bytes > 0) {
    fmt::print(stderr, "kvturbo: {} MB of base logits are kept in {}; kvturbo eval --clean removes them\n", bytes / 1000000,
               logits_folder().string());
  }
  return kExitOk;
}

}  // namespace kvt::cli
