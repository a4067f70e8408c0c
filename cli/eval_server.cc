#include "eval_server.h"

#include "child_process.h"
#include "cli_error.h"

#include <fmt/format.h>
#include <httplib.h>

namespace kvt::cli {

namespace {

using nlohmann::json;

std::vector<std::string> server_flags(const EvalHost& host, const KvSetting& setting, unsigned n_ctx) {
  // One slot that has the whole context. Prompts are not kept: each one is to be read anew into an empty cache.
  std::vector<std::string> flags = {"-c", std::to_string(n_ctx),           "--parallel", "1", "--cache-ram", "0",
                                    "-t", std::to_string(host.n_threads())};
  const std::vector<std::string> more = host_flags(setting);
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

}  // namespace

EvalServer::EvalServer(const EvalOptions& options, const EvalHost& host, const EvalModel& model, const KvSetting& setting,
                       unsigned n_ctx)
    : host_(host),
      model_(model),
      setting_(setting),
      process_(host.host(), model.path, host_options(options.common, setting),
               setting.is_ours ? host.plugin() : std::filesystem::path(), server_flags(host, setting, n_ctx)) {
  process_.wait_until_ready();
}

json EvalServer::post(const std::string& path, const json& body) {
  httplib::Client client("127.0.0.1", process_.port());
  client.set_read_timeout(std::chrono::hours(24));  // a long prompt on a slow machine is silent for long
  const httplib::Result answer =
      client.Post(path, body.dump(-1, ' ', false, json::error_handler_t::replace), "application/json");
  if (received_signal() != 0) throw CliError(kExitFailure, "interrupted", "by a signal", "");
  if (!answer) throw process_.failure();
  const json result = json::parse(answer->body, nullptr, false);
  if (answer->status != 200 || !result.is_object()) {
    throw CliError(kExitFailure, "llama-server (" + setting_.name + ")",
                   fmt::format("{} answered {}: {}", path, answer->status, answer->body.substr(0, 200)), "");
  }
  return result;
}

std::vector<int> EvalServer::tokenize(const std::string& text, bool at_begin) {
  return post("/tokenize", {{"content", text}, {"add_special", at_begin}}).value("tokens", std::vector<int>());
}

std::vector<int> EvalServer::tokenize_file(const EvalText& text, std::size_t n_tokens) {
  // Rarely more than eight bytes a token: so much of it is enough, and quick to read.
  const std::vector<int> tokens = tokenize(read_file(text.path).substr(0, 16 * n_tokens), true);
  if (tokens.size() >= n_tokens) return tokens;
  throw CliError(kExitFailure, "text " + text.name,
                 fmt::format("it has only {} tokens, {} are needed", tokens.size(), n_tokens),
                 "give a longer text, or a smaller -c");
}

Completion EvalServer::complete(const std::vector<int>& prompt, unsigned n_predict) {
  const json answer = post("/completion", {{"prompt", prompt},
                                           {"n_predict", n_predict},
                                           {"temperature", 0.0},
                                           {"cache_prompt", false},
                                           {"return_tokens", true},
                                           {"ignore_eos", true}});
  Completion completion{answer.value("tokens", std::vector<int>()), answer.value("content", "")};
  if (completion.tokens.size() == n_predict) return completion;
  throw CliError(kExitFailure, "llama-server (" + setting_.name + ")",
                 fmt::format("it generated {} tokens of {}", completion.tokens.size(), n_predict), "use the pinned host");
}

CacheCost EvalServer::finish() {
  process_.stop();
  host_.append_log(fmt::format("==== llama-server {}\n{}", setting_.name, process_.log()));
  if (!setting_.is_ours) return stock_cost(model_, setting_);
  const std::optional<CacheReport> report = read_cache_report(process_.report_path());
  check_compressed(report, setting_, process_.log());
  return our_cost(*report);
}

}  // namespace kvt::cli
