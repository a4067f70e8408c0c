#ifndef KVT_BENCH_CUDA_BENCH_ENGINE_H
#define KVT_BENCH_CUDA_BENCH_ENGINE_H

#include <kvturbo/kvturbo.h>

#include <vector>

// Prints a table: what an engine asks of a layer in one step.
void bench_engine(const std::vector<kvt_codec_id>& codecs);

#endif
