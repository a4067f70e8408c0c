#include "plugin_messages.h"

#include <sys/uio.h>
#include <unistd.h>

#include <cstdio>
#include <mutex>
#include <set>

namespace kvt::plugin {

void say(std::string_view line) {
  // One write, so that lines of several threads do not mix, and no memory, since that may be what there is to say.
  char begin[] = "kvturbo: ", end[] = "\n";
  iovec parts[] = {{begin, sizeof(begin) - 1}, {const_cast<char*>(line.data()), line.size()}, {end, 1}};
  std::fflush(stderr);
  if (writev(STDERR_FILENO, parts, 3) < 0) return;  // nobody listens
}

void say_once(const std::string& line) {
  // Never destroyed: handlers at the end of the process speak too.
  static auto& mutex = *new std::mutex;
  static auto& said = *new std::set<std::string>;
  const std::lock_guard<std::mutex> lock(mutex);
  if (said.insert(line).second) say(line);
}

}  // namespace kvt::plugin
