// Lines for people, on standard error, each starting with "kvturbo: ". Hosts show ggml's own log only at some verbosity.
#ifndef KVT_PLUGIN_MESSAGES_H
#define KVT_PLUGIN_MESSAGES_H

#include <string>
#include <string_view>

namespace kvt::plugin {

void say(std::string_view line);

// As say, but each text only once in the life of the process.
void say_once(const std::string& line);

}  // namespace kvt::plugin

#endif
