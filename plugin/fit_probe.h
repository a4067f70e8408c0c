// Do the keys of a layer fit their codec? Measured where it counts: the scores of a query of the running model over keys that are known
// both exactly and as codes, the newest rows. If codes move scores by more than a fraction of a nat, attention goes to other tokens
// and the answers are no longer the model's, as with Qwen2.5's large key biases at 4 bits.
#ifndef KVT_PLUGIN_FIT_PROBE_H
#define KVT_PLUGIN_FIT_PROBE_H

#include "cache_tensor.h"

namespace kvt::plugin {

// Root mean square, over the newest keys of a head, of what codes do to the scores of a query, less what they do to all alike; the
// worst of the kv heads, in nats. query of kv head h: queries + h * query_stride, [head_dim] fp32. -1: too few keys are known exactly.
double score_error(CacheTensor* keys, size_t stream, const float* queries, size_t query_stride, float scale);

}  // namespace kvt::plugin

#endif
