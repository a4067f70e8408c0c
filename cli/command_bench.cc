#include "command_bench.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "bench_kernel_report.h"
#include "cli_error.h"
#include "kvturbo/kvturbo.h"

namespace kvt::cli {

namespace {

void add_output_options(CLI::App& command, BenchOptions& options) {
  CLI::Option* json = command.add_flag("--json", options.json, "print JSON instead of tables");
  command.add_flag("--markdown")->description("print markdown tables (the default)")->excludes(json);
}

void declare_kernel(CLI::App& bench, BenchOptions& options) {
  KernelBenchOptions& kernel = options.kernel;
  CLI::App* command =
      bench.add_subcommand("kernel", "attention over compressed pages: ours against our own f16 kernel and the host's");
  options.kernel_command = command;
  command->add_option("--head-dim", kernel.head_dim, "head dim (128)")->type_name("N");
  command->add_option("--group", kernel.groups, "query heads for each kv head (1,4,8)")
      ->delimiter(',')
      ->check(CLI::Range(1, 64))
      ->type_name("N,...");
  command->add_option("--tokens", kernel.token_counts, "tokens in the cache (65536; 4096 for prefill)")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 24))
      ->type_name("N,...");
  command->add_option("--kv-heads", kernel.n_kv_heads, "kv heads (8)")->check(CLI::Range(1, 1024))->type_name("N");
  command->add_option("--queries", kernel.n_queries, "tokens that ask: 1 decode, 2 to 8 drafts, more prefill (1)")
      ->check(CLI::Range(1, 1 << 16))
      ->type_name("N");
  command->add_option("--threads", kernel.threads, "threads (1,all)")->delimiter(',')->type_name("N,...");
  command->add_option("--codec", kernel.codecs, "codecs beside f16, of " + codec_names() + " (hybrid,scalar43,k4v3)")
      ->delimiter(',')
      ->type_name("NAME,...");
  command->add_option("--isa", kernel.isas, "kernel tables (all of this machine but scalar)")
      ->delimiter(',')
      ->envname("KVTURBO_ISA")
      ->type_name("NAME,...");
  command->add_option("--rounds", kernel.n_rounds, "rounds, each with every candidate (15)")
      ->check(CLI::Range(1, 10000))
      ->type_name("N");
  command
      ->add_option("--host", kernel.common.host_folder, "folder with llama.cpp's programs and libraries, instead of searching")
      ->envname("KVTURBO_HOST")
      ->type_name("DIR");
  command->add_flag("--no-ggml", kernel.no_ggml, "leave the host's flash attention out");
  command
      ->add_option("--ggml-layout", kernel.ggml_layout,
                   "of the cache that the host's flash attention reads: head-major, its best case, or token-major, llama.cpp's")
      ->check(CLI::IsMember({"head-major", "token-major"}))
      ->type_name("NAME");
  command->add_flag("--quick", kernel.quick, "fewer rounds: ends within 40 s on two cores");
  add_output_options(*command, options);
  command->footer(
      "Needs 1.2 GB of memory at the default size, and a quiet machine.\nExample: kvturbo bench kernel --tokens 65536 --group "
      "1,8 --codec hybrid");
}

void declare_model(CLI::App& bench, BenchOptions& options) {
  ModelBenchOptions& model = options.model;
  CLI::App* command = bench.add_subcommand("model", "the host's llama-bench with the stock cache and with ours");
  options.model_command = command;
  command->add_option("-m,--model", model.model, "a name of `kvturbo models`, or a GGUF file")
      ->envname("KVTURBO_MODEL")
      ->required()
      ->type_name("MODEL");
  command->add_option("--codec", model.codecs, "codecs, of " + codec_names() + " (hybrid,scalar43,k4v3)")
      ->delimiter(',')
      ->type_name("NAME,...");
  command->add_option("--stock", model.stock_types, "types of the stock cache to compare with (f16,q8_0,q4_0)")
      ->delimiter(',')
      ->type_name("TYPE,...");
  command->add_flag("--stock-only", model.stock_only, "leave ours out");
  command->add_option("-p,--prompt", model.n_prompt, "tokens of the prefill test, 0 for none (512)")
      ->check(CLI::Range(0, 1 << 20))
      ->type_name("N");
  command->add_option("-n,--gen", model.n_gen, "tokens of the generation test, 0 for none (64)")
      ->check(CLI::Range(0, 1 << 20))
      ->type_name("N");
  command->add_option("-d,--depth", model.depths, "tokens in the cache before each test (0,2048,8192)")
      ->delimiter(',')
      ->check(CLI::Range(0, 1 << 24))
      ->type_name("N,...");
  command->add_option("-t,--threads", model.n_threads, "threads (all)")->check(CLI::Range(1, 4096))->type_name("N");
  command->add_option("--rounds", model.n_rounds, "rounds, each with every cache (3)")
      ->check(CLI::Range(1, 1000))
      ->type_name("N");
  command->add_option("--isa", model.common.isa, "kernel table of ours (the best)")->envname("KVTURBO_ISA")->type_name("NAME");
  command->add_option("--host", model.common.host_folder, "folder with llama-bench, instead of searching")
      ->envname("KVTURBO_HOST")
      ->type_name("DIR");
  command->add_option("--plugin", model.common.plugin_path, "path of libggml-kvturbo.so, instead of searching")
      ->envname("KVTURBO_PLUGIN")
      ->type_name("FILE");
  command->add_flag("--quick", model.quick, "one round, depths 0 and 2048");
  add_output_options(*command, options);
  command->footer("Example: kvturbo bench model -m smollm2-135m --codec hybrid --depth 0,8192");
}

void declare_report(CLI::App& bench, BenchOptions& options) {
  ReportOptions& report = options.report;
  CLI::App* command = bench.add_subcommand(
      "report", "one HTML page of charts from what bench model, bench kernel and eval printed with --json");
  options.report_command = command;
  command->add_option("FILE", report.inputs, "outputs of these commands")->required()->type_name("");
  command->add_option("-o,--out", report.page_path, "the page; - for standard output (kvturbo-report.html)")->type_name("FILE");
  command
      ->add_option("--charts", report.chart_folder,
                   "also write each chart there as SVG, and as PNG where rsvg-convert is installed")
      ->type_name("DIR");
  command->add_option("--title", report.title, "title of the page")->type_name("TEXT");
  command->add_flag("--json", options.json, "print the paths of what was written as JSON");
  command->footer(
      "Example: kvturbo bench model -m smollm2-135m --json > speed.json; kvturbo eval -m smollm2-135m --json > loss.json; "
      "kvturbo bench "
      "report speed.json loss.json -o report.html");
}

int run_report(const BenchOptions& options) {
  if (options.json && options.report.page_path == "-") {
    throw CliError(kExitUsage, "command line", "--json and -o - both want standard output", "name a file with -o");
  }
  const std::vector<std::filesystem::path> paths = write_report(options.report);
  if (options.json) {
    nlohmann::json list = nlohmann::json::array();
    for (const std::filesystem::path& path : paths) list.push_back(path.string());
    fmt::print("{}\n", list.dump(2));
  } else if (options.report.page_path != "-") {
    for (const std::filesystem::path& path : paths) fmt::print("{}\n", path.string());
  }
  return kExitOk;
}

int run_kernel(const BenchOptions& options) {
  const KernelBenchResult result = bench_kernel(options.kernel);
  if (!options.json) {
    fmt::print("{}", kernel_markdown(options.kernel, result));
    return kExitOk;
  }
  fmt::print("{}", kernel_json(result));
  for (const std::string& warning : kernel_warnings(result)) fmt::print(stderr, "kvturbo: {}\n", warning);
  return kExitOk;
}

int run_model(const BenchOptions& options) {
  const ModelBenchResult result = bench_model(options.model);
  if (!options.json) {
    fmt::print("{}", model_markdown(result));
    return kExitOk;
  }
  fmt::print("{}", model_json(result));
  for (const std::string& warning : result.warnings) fmt::print(stderr, "kvturbo: {}\n", warning);
  return kExitOk;
}

}  // namespace

CLI::App* declare_bench(CLI::App& app, BenchOptions& options) {
  CLI::App* bench =
      app.add_subcommand("bench", "measure this machine: the attention kernels, or a model in the host; and make a page of it");
  bench->require_subcommand(1);
  declare_kernel(*bench, options);
  declare_model(*bench, options);
  declare_report(*bench, options);
  bench->footer("Example: kvturbo bench kernel --quick");
  return bench;
}

int command_bench(const BenchOptions& options) {
  if (options.report_command->parsed()) return run_report(options);
  return options.kernel_command->parsed() ? run_kernel(options) : run_model(options);
}

}  // namespace kvt::cli
