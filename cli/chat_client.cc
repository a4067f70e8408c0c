#include "chat_client.h"

#include <httplib.h>

#include <nlohmann/json.hpp>

namespace kvt::cli {

namespace {

using nlohmann::json;

json request_body(const ChatRequest& request) {
  json body = {
      {"stream", true},
      {"temperature", request.temperature},
      {"cache_prompt", true},
  };
  if (request.seed) body["seed"] = *request.seed;
  if (request.raw) {
    body["prompt"] = request.prompt;
    body["n_predict"] = request.n_predict;
  } else {
    body["messages"] = json::array({{{"role", "user"}, {"content", request.prompt}}});
    body["max_tokens"] = request.n_predict;
    body["reasoning_format"] = "none";  // reasoning arrives as text, like the rest
    body["stream_options"] = {{"include_usage", true}};
  }
  return body;
}

// Server-sent events: lines "data: {...}", closed by "data: [DONE]".
class EventReader {
 public:
  EventReader(ChatResult& result, const std::function<bool(const std::string&)>& on_text)
      : result_(result), on_text_(on_text) {}

  bool feed(const char* data, std::size_t size) {
    pending_.append(data, size);
    for (std::size_t end; (end = pending_.find('\n')) != std::string::npos;) {
      const std::string line = pending_.substr(0, end);
      pending_.erase(0, end + 1);
      if (!take_line(line)) return false;
    }
    return true;
  }

  // What is left is an answer that is not a stream: an error.
  void finish() { take_object(pending_); }

 private:
  bool take_line(const std::string& line) {
    if (!line.starts_with("data: ")) {
      take_object(line);
      return true;
    }
    return take_object(line.substr(6));
  }

  bool take_object(const std::string& text) {
    const json event = json::parse(text, nullptr, false);
    if (!event.is_object()) return true;
    if (event.contains("error")) {
      const json& error = event["error"];
      result_.host_error = error.is_object() ? error.value("message", error.dump()) : error.dump();
      return true;
    }
    if (event.contains("timings")) take_timings(event["timings"]);
    return take_text(event);
  }

  bool take_text(const json& event) {
    std::string text;
    if (event.contains("content") && event["content"].is_string()) {  // /completion
      text = event["content"];
      result_.hit_limit = event.value("stop_type", "") == "limit";
    } else if (event.contains("choices") && !event["choices"].empty()) {
      const json& choice = event["choices"][0];
      const json delta = choice.value("delta", json::object());
      if (delta.contains("content") && delta["content"].is_string()) text = delta["content"];
      if (choice.contains("finish_reason") && choice["finish_reason"] == "length") result_.hit_limit = true;
    }
    if (text.empty()) return true;
    result_.text += text;
    return on_text_(text);
  }

  void take_timings(const json& timings) {
    result_.prompt_tokens = timings.value("prompt_n", std::uint64_t{0}) + timings.value("cache_n", std::uint64_t{0});
    result_.generated_tokens = timings.value("predicted_n", std::uint64_t{0});
    result_.prompt_tokens_per_second = timings.value("prompt_per_second", 0.0);
    result_.tokens_per_second = timings.value("predicted_per_second", 0.0);
  }

  ChatResult& result_;
  const std::function<bool(const std::string&)>& on_text_;
  std::string pending_;
};

// "b11434-unknown" -> "b11434"; empty if the host does not say.
std::string host_build(httplib::Client& client) {
  const httplib::Result answer = client.Get("/props");
  if (!answer || answer->status != 200) return "";
  const json properties = json::parse(answer->body, nullptr, false);
  if (!properties.is_object() || !properties.contains("build_info") || !properties["build_info"].is_string()) return "";
  const std::string build = properties["build_info"];
  return build.substr(0, build.find('-'));
}

}  // namespace

ChatResult stream_chat(int port, const ChatRequest& request, const std::function<bool(const std::string&)>& on_text) {
  ChatResult result;
  EventReader reader(result, on_text);
  httplib::Client client("127.0.0.1", port);
  client.set_read_timeout(std::chrono::hours(24));  // a long prompt on a slow machine is silent for long

  result.host_build = host_build(client);

  httplib::Request http;
  http.method = "POST";
  http.path = request.raw ? "/completion" : "/v1/chat/completions";
  http.set_header("Content-Type", "application/json");
  // A prompt that is not UTF-8 is passed with replacement characters rather than refused by the JSON writer.
  http.body = request_body(request).dump(-1, ' ', false, json::error_handler_t::replace);
  http.content_receiver = [&](const char* data, std::size_t size, std::uint64_t, std::uint64_t) {
    return reader.feed(data, size);
  };
  const httplib::Result answer = client.send(http);
  reader.finish();
  result.connection_lost = !answer && answer.error() != httplib::Error::Canceled;
  if (answer && answer->status != 200 && result.host_error.empty()) {
    result.host_error = "HTTP status " + std::to_string(answer->status);
  }
  return result;
}

}  // namespace kvt::cli
