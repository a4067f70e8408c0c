// Compares ggml's structures, as our headers declare them, with what the host makes of them.
#ifndef KVT_PLUGIN_LAYOUT_CHECK_H
#define KVT_PLUGIN_LAYOUT_CHECK_H

#include <string>

#include "host_ggml.h"

namespace kvt::plugin {

// The functions of host() must be there. On a difference returns false and names the structure.
bool check_layout(ggml_backend_dev_t cpu, std::string* difference);

}  // namespace kvt::plugin

#endif
