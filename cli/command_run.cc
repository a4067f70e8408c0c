// kvturbo run: one answer from the stock llama-server with the compressed cache, then what it cost.

#include "cache_report.h"
#include "chat_client.h"
#include "cli_error.h"
#include "commands.h"
#include "host_log.h"
#include "host_process.h"
#include "model_store.h"
#include "terminal_output.h"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <system_error>

namespace kvt::cli {

namespace fs = std::filesystem;

namespace {

struct Outcome {
  ChatResult chat;
  std::optional<CacheReport> report;  // empty in a stock run
};

std::vector<std::string> server_flags(const RunOptions& options) {
  // One slot: one request, and the whole context is for it.
  std::vector<std::string> flags = {"-c", std::to_string(options.context_tokens), "--parallel", "1"};
  if (options.n_threads > 0) flags.insert(flags.end(), {"--threads", std::to_string(options.n_threads)});
  flags.insert(flags.end(), options.host_flags.begin(), options.host_flags.end());
  return flags;
}

void keep_log(const RunOptions& options, const HostProcess& host) {
  if (options.log_path.empty()) return;
  std::error_code error;
  fs::copy_file(host.log_path(), options.log_path, fs::copy_options::overwrite_existing, error);
  if (error) fmt::print(stderr, "kvturbo: log {}: cannot write it: {}\n", options.log_path, error.message());
}

CliError no_report_error(const std::string& log) {
  const std::optional<std::string> failure = plugin_load_failure(log);
  const std::optional<std::string> said = failure ? failure : last_plugin_line(log);
  return {kExitFailure, "plug-in", said ? *said : "the host did not use it, so nothing was compressed", "see `kvturbo doctor`"};
}

// visible: the answer goes to stdout as it arrives.
Outcome generate(const Host& found, const fs::path& model, const fs::path& plugin, const RunOptions& options, bool visible) {
  StatusLine status;
  status.show("loading " + model.filename().string() + (plugin.empty() ? " (stock cache)" : ""));
  HostProcess host(found, model, options.common, plugin, server_flags(options));
  Outcome outcome;
  try {
    host.wait_until_ready();
    // A host that could not load the plug-in goes on without it: say so before the answer, not after it.
    if (!plugin.empty() && plugin_load_failure(host.log())) throw no_report_error(host.log());

    const ChatRequest request{options.prompt, options.raw, options.n_predict, options.temperature, options.seed};
    status.show(visible ? "reading the prompt" : "generating with the stock cache, to compare");
    outcome.chat = stream_chat(host.port(), request, [&](const std::string& text) {
      if (!visible) return true;
      status.clear();
      return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
    });
    status.clear();
    if (visible && !outcome.chat.text.empty() && !outcome.chat.text.ends_with('\n')) fmt::print("\n");
    std::fflush(stdout);
    if (received_signal() != 0) throw CliError(kExitFailure, "interrupted", "by a signal", "");
    if (!outcome.chat.host_error.empty()) {
      const bool too_long = outcome.chat.host_error.find("context") != std::string::npos;
      throw CliError(kExitFailure, "host", outcome.chat.host_error, too_long ? "use a larger context: -c N" : "");
    }
    if (outcome.chat.connection_lost) throw host.failure();
    host.stop();
    if (!plugin.empty()) {
      outcome.report = read_cache_report(host.report_path());
      if (!outcome.report) throw no_report_error(host.log());
    }
  } catch (...) {
    keep_log(options, host);
    throw;
  }
  keep_log(options, host);
  return outcome;
}

std::string host_text(const Outcome& outcome) {
  std::string text = "llama.cpp";
  if (!outcome.chat.host_build.empty()) text += " " + outcome.chat.host_build;
  return text;
}

void print_row(const std::string& name, const std::string& value) { fmt::print(stderr, "  {:<20}{}\n", name, value); }

std::string speed_text(std::uint64_t n_tokens, double per_second) {
  return fmt::format("{:>6} tokens {:>9.1f} tokens/s", with_thousands(n_tokens), per_second);
}

void print_cache(const CacheReport& report) {
  const auto ours = static_cast<std::uint64_t>(report.kv_bytes_per_token + 0.5);
  const auto f16 = static_cast<std::uint64_t>(report.kv_bytes_per_token_f16 + 0.5);
  if (f16 > 0) {
    print_row("KV bytes per token", fmt::format("{} ({}); f16 needs {}: {:.2f} times smaller", with_thousands(ours),
                                                report.codec, with_thousands(f16), report.ratio));
  }
  print_row("compressed", report.layers_compressed == 0
                              ? "nothing"
                              : fmt::format("{} of {} layers", report.layers_compressed, report.layers_total));
  for (const NotCompressed& item : report.not_compressed) {
    print_row("not compressed",
              fmt::format("{}: {}", item.layers == "all" ? "all layers" : "layers " + item.layers, item.reason));
  }
}

// How far two answers agree: "the same answer", or "the first 57 characters".
std::string agreement(const std::string& ours, const std::string& stock) {
  if (ours == stock) return "the same answer, letter for letter";
  std::size_t n = 0;
  while (n < ours.size() && n < stock.size() && ours[n] == stock[n]) ++n;
  return fmt::format("the same for the first {} bytes of {}, then another wording", n, ours.size());
}

void print_summary(const fs::path& model, const Outcome& outcome, const Outcome* stock) {
  fmt::print(stderr, "\n");
  print_row("model", model.filename().string());
  print_row("host", host_text(outcome) +
                        (outcome.report && !outcome.report->isa.empty() ? ", kvturbo kernels " + outcome.report->isa : ""));
  if (outcome.report) {
    print_cache(*outcome.report);
  } else {
    print_row("cache", "stock, nothing is compressed (--stock)");
  }
  print_row("prompt", speed_text(outcome.chat.prompt_tokens, outcome.chat.prompt_tokens_per_second));
  if (stock) print_row("  stock f16", speed_text(stock->chat.prompt_tokens, stock->chat.prompt_tokens_per_second));
  print_row("generation", speed_text(outcome.chat.generated_tokens, outcome.chat.tokens_per_second));
  if (stock) {
    print_row("  stock f16", speed_text(stock->chat.generated_tokens, stock->chat.tokens_per_second));
    print_row("  beside stock", agreement(outcome.chat.text, stock->chat.text));
  }
  if (outcome.chat.hit_limit) print_row("ended", "at the limit of -n; a larger -n goes on");
}

void print_json(const fs::path& model, const Outcome& outcome) {
  nlohmann::ordered_json json;
  json["codec"] = outcome.report ? outcome.report->codec : "stock";
  json["kv_bytes_per_token"] = nullptr;  // unknown in a stock run
  json["kv_bytes_per_token_f16"] = nullptr;
  json["ratio"] = nullptr;
  if (outcome.report) {
    json["kv_bytes_per_token"] = outcome.report->kv_bytes_per_token;
    json["kv_bytes_per_token_f16"] = outcome.report->kv_bytes_per_token_f16;
    json["ratio"] = outcome.report->ratio;
  }
  json["prompt_tokens"] = outcome.chat.prompt_tokens;
  json["generated_tokens"] = outcome.chat.generated_tokens;
  json["prompt_tokens_per_second"] = outcome.chat.prompt_tokens_per_second;
  json["tokens_per_second"] = outcome.chat.tokens_per_second;
  json["host"] = host_text(outcome);
  json["model"] = model.string();
  fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace

int command_run(const RunOptions& options) {
  check_codec_name(options.common.codec);
  check_model(options.model);
  const Host host = find_host(options.common);
  const fs::path plugin = options.stock ? fs::path() : find_plugin(options.common);
  const fs::path model = resolve_model(options.model);

  std::optional<Outcome> stock;
  if (options.compare && !options.stock) stock = generate(host, model, fs::path(), options, false);
  const Outcome outcome = generate(host, model, plugin, options, true);
  print_summary(model, outcome, stock ? &*stock : nullptr);
  if (options.json) print_json(model, outcome);
  return kExitOk;
}

}  // namespace kvt::cli
