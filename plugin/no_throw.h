// The host is C: no exception may leave us, from any of the functions that it calls. What throws here is the lack of memory.
#ifndef KVT_PLUGIN_NO_THROW_H
#define KVT_PLUGIN_NO_THROW_H

#include <exception>

namespace kvt::plugin {

// Runs work(); false if it threw.
template <typename Work>
bool completes(Work work) noexcept {
  try {
    work();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace kvt::plugin

#endif
