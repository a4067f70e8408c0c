// One request to llama-server, streamed.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace kvt::cli {

struct ChatRequest {
  std::string prompt;
  bool raw = false;  // true: the prompt as it is (/completion); false: a user's message in the model's chat template
  int n_predict = 0;
  double temperature = 0.0;
  std::optional<long> seed;
};

struct ChatResult {
  std::string text;
  std::uint64_t prompt_tokens = 0;
  std::uint64_t generated_tokens = 0;
  double prompt_tokens_per_second = 0;
  double tokens_per_second = 0;
  std::string host_build;  // "b11434"; empty if the host does not say
  std::string host_error;  // set if the host answered with an error
  bool connection_lost = false;
  bool hit_limit = false;  // the answer ended at n_predict tokens
};

// on_text gets each piece of text as it arrives and returns false to stop.
ChatResult stream_chat(int port, const ChatRequest& request, const std::function<bool(const std::string&)>& on_text);

}  // namespace kvt::cli
