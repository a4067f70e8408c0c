// A stock llama-server for needle and greedy: prompts as tokens, the likeliest token each time.
#pragma once

#include "eval_host.h"
#include "eval_texts.h"
#include "host_process.h"

#include <cstddef>
#include <string>
#include <vector>

namespace kvt::cli {

struct Completion {
  std::vector<int> tokens;
  std::string text;
};

class EvalServer {
 public:
  // Loads the model. n_ctx: prompt and answer.
  EvalServer(const EvalOptions& options, const EvalHost& host, const EvalModel& model, const KvSetting& setting,
             unsigned n_ctx);

  // at_begin: with a BOS in front, if the model wants one.
  std::vector<int> tokenize(const std::string& text, bool at_begin);
  // At least n_tokens from the begin of the text. Throws CliError if it has fewer.
  std::vector<int> tokenize_file(const EvalText& text, std::size_t n_tokens);
  // n_predict tokens, whatever they are: an end of text does not end them.
  Completion complete(const std::vector<int>& prompt, unsigned n_predict);
  // Ends the server. Returns what its cache costs; throws CliError if it was to be ours and nothing was compressed.
  CacheCost finish();

 private:
  nlohmann::json post(const std::string& path, const nlohmann::json& body);

  const EvalHost& host_;
  const EvalModel& model_;
  const KvSetting& setting_;
  HostProcess process_;
};

}  // namespace kvt::cli
