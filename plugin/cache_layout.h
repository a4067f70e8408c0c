// Decides, from the host's graphs, how each cache tensor is stored: only attention nodes tell the head dim.
#ifndef KVT_PLUGIN_CACHE_LAYOUT_H
#define KVT_PLUGIN_CACHE_LAYOUT_H

#include "ggml_abi/host_ggml.h"

namespace kvt::plugin {

// Settles tensors that the attention nodes of a graph read. The host shows us its graphs when it reserves memory for them, so
// that this comes before the first computation.
void learn_from_attention(const ggml_cgraph* graph);

// Before a graph is computed: as above, and a tensor that the graph touches becomes plain rows if it is still undecided, or if
// the graph is the first to use it and works on it otherwise than by attention: the host has given up flash attention after
// showing us a graph with it. Returns false if there is no memory.
bool settle_all(const ggml_cgraph* graph);

}  // namespace kvt::plugin

#endif
