#include "plugin_messages.h"

#include <cstdio>
#include <mutex>
#include <set>

namespace kvt::plugin {

void say(const std::string& line) {
  // One write, so that lines of several threads do not mix.
  const std::string text = "kvturbo: " + line + "\n";
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

void say_once(const std::string& line) {
  // Never destroyed: handlers at the end of the process speak too.
  static auto& mutex = *new std::mutex;
  static auto& said = *new std::set<std::string>;
  const std::lock_guard<std::mutex> lock(mutex);
  if (said.insert(line).second) say(line);
}

}  // namespace kvt::plugin
