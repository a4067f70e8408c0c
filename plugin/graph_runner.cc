#include "graph_runner.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "plugin_messages.h"

namespace kvt::plugin {
namespace {

std::mutex g_mutex;
std::vector<GraphRunner*> g_live;

}  // namespace

GraphRunner::GraphRunner() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_live.push_back(this);
}

GraphRunner::~GraphRunner() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_live.erase(std::remove(g_live.begin(), g_live.end(), this), g_live.end());
}

void finish_all_graphs() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  for (GraphRunner* runner : g_live) runner->finish();
}

enum ggml_status no_memory_for_cache() {
  say("no memory for the KV cache; use a smaller context (-c)");
  return GGML_STATUS_ALLOC_FAILED;
}

enum ggml_status no_memory_for_working_space() {
  say("no memory for working space; use a smaller context (-c) or smaller batches (-ub)");
  return GGML_STATUS_ALLOC_FAILED;
}

}  // namespace kvt::plugin
