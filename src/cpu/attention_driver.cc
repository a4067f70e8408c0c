// Work units are (stream, kv head, block of queries); a group of query heads is never divided.
// Many units (prefill): whole units, dealt round-robin. Few units (decode): the pages of all units form one list that is cut into
// equal parts; a unit that several threads touched is merged, in thread order, by the one that finishes it last. So the result does
// not depend on timing.
#include "cpu/attention_driver.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

namespace kvt::cpu {
namespace {

// Below this many units for each thread, dealing whole units would leave threads idle.
constexpr unsigned kUnitsPerThread = 4;
// Units are cut between at most this many threads: one counter byte each, in the 64 bytes that kvt_attend_thread asks to be zero.
constexpr unsigned kMaxSplitThreads = 64;
constexpr size_t kCounterBytes = 64;

struct Plan {
  unsigned block_queries;  // queries of one unit
  unsigned n_blocks;
  unsigned n_units;
  unsigned n_pages;  // of one unit
  bool split;        // cut units between threads
  // Workspace, offsets in bytes: counters, one partial state for each (unit, thread) visit, one scratch for each thread.
  size_t partial_offset, partial_bytes;
  size_t scratch_offset, scratch_bytes;
  size_t total_bytes;
};

size_t state_bytes(const AttentionCall& call, unsigned rows) {
  return (size_t{rows} * (call.value->head_dim + 2) * sizeof(float) + 63) / 64 * 64;
}

Plan make_plan(const AttentionCall& call, unsigned n_threads) {
  const kvt_attention& a = *call.args;
  Plan plan{};
  plan.block_queries = std::min(std::max(1u, kMaxRows / a.n_group), a.n_queries);
  plan.n_blocks = (a.n_queries + plan.block_queries - 1) / plan.block_queries;
  plan.n_units = a.n_streams * a.n_kv_heads * plan.n_blocks;
  plan.n_pages = (a.n_cells + kPageTokens - 1) / kPageTokens;
  plan.split = n_threads > 1 && plan.n_pages > 0 && plan.n_units < kUnitsPerThread * std::min(n_threads, kMaxSplitThreads);
  plan.partial_offset = kCounterBytes;
  plan.partial_bytes = state_bytes(call, plan.block_queries * a.n_group);
  // Visits number at most units + threads; slot unit + thread is unique, since both only grow along the list of pages.
  plan.scratch_offset = plan.partial_offset + (plan.split ? size_t{plan.n_units + n_threads} * plan.partial_bytes : 0);
  plan.scratch_bytes = attend_scratch_bytes(*call.key, *call.value) + plan.partial_bytes;
  plan.total_bytes = plan.scratch_offset + plan.scratch_bytes * n_threads;
  return plan;
}

struct Unit {
  unsigned stream, head, first_query, n_queries;
};

Unit unit_at(const AttentionCall& call, const Plan& plan, unsigned index) {
  const unsigned block = index % plan.n_blocks, head = index / plan.n_blocks % call.args->n_kv_heads;
  const unsigned first = block * plan.block_queries;
  return {index / plan.n_blocks / call.args->n_kv_heads, head, first, std::min(plan.block_queries, call.args->n_queries - first)};
}

struct State {
  float* row_max;
  float* row_sum;
  float* acc;
  State(uint8_t* at, unsigned rows) : row_max(reinterpret_cast<float*>(at)), row_sum(row_max + rows), acc(row_sum + rows) {}
};

template <class T>
const T* at(const void* base, size_t bytes) {
  return reinterpret_cast<const T*>(static_cast<const uint8_t*>(base) + bytes);
}

void run_unit(const AttentionCall& call, const Unit& unit, unsigned first_page, unsigned end_page, const State& state, uint8_t* scratch) {
  const kvt_attention& a = *call.args;
  AttendBlock block{};
  block.key = call.key;
  block.value = call.value;
  block.k_pages = static_cast<const uint8_t*>(a.k_pages) + unit.stream * a.k_stream_stride + unit.head * a.k_head_stride;
  block.v_pages = static_cast<const uint8_t*>(a.v_pages) + unit.stream * a.v_stream_stride + unit.head * a.v_head_stride;
  block.k_page_stride = a.k_page_stride;
  block.v_page_stride = a.v_page_stride;
  block.n_group = a.n_group;
  block.n_queries = unit.n_queries;
  block.first_cell = first_page * kPageTokens;
  block.end_cell = std::min(end_page * kPageTokens, a.n_cells);
  const size_t first_head = size_t{unit.head} * a.n_group;
  block.q = reinterpret_cast<const uint8_t*>(a.q) + unit.stream * a.q_stream_stride + unit.first_query * a.q_query_stride +
            first_head * a.q_head_stride;
  block.q_query_stride = a.q_query_stride;
  block.q_head_stride = a.q_head_stride;
  if (a.mask != nullptr) {
    block.mask = reinterpret_cast<const uint8_t*>(a.mask) + unit.stream * a.mask_stream_stride +
                 unit.first_query * a.mask_query_stride + first_head * a.mask_head_stride;
  }
  block.mask_query_stride = a.mask_query_stride;
  block.mask_head_stride = a.mask_head_stride;
  block.slopes = a.slopes != nullptr ? a.slopes + first_head : nullptr;
  block.scale = a.scale;
  block.softcap = a.logit_softcap;
  if (a.key_scale != nullptr) {
    block.key_scale = at<float>(a.key_scale, unit.head * a.key_scale_head_stride);
  }
  if (a.key_mean != nullptr) {
    block.key_mean = at<int8_t>(a.key_mean, unit.stream * a.key_mean_stream_stride + unit.head * a.key_mean_head_stride);
    block.key_mean_unit =
        at<float>(a.key_mean_unit, unit.stream * a.key_mean_unit_stream_stride + unit.head * a.key_mean_unit_head_stride);
    block.mean_cells = a.mean_cells;
  }
  block.takes_exact = first_page == 0;
  block.n_cells = a.n_cells;
  if (a.n_exact > 0) {
    block.n_exact = a.n_exact;
    block.exact_k = at<uint8_t>(a.exact_k, unit.stream * a.exact_k_stream_stride + unit.head * a.exact_k_head_stride);
    block.exact_v = at<uint8_t>(a.exact_v, unit.stream * a.exact_v_stream_stride + unit.head * a.exact_v_head_stride);
  }
  if (a.n_recent > 0) {
    block.n_recent = a.n_recent;
    block.recent_window = a.recent_window;
    block.recent_pinned = std::min(a.recent_pinned, a.n_recent);
    block.recent_own = std::min(a.recent_own, a.n_recent - 1) + unit.first_query;
    block.recent_cells = at<int32_t>(a.recent_cells, unit.stream * a.recent_cells_stream_stride);
    block.recent_k = at<uint8_t>(a.recent_k, unit.stream * a.recent_k_stream_stride + unit.head * a.recent_k_head_stride);
    block.recent_v = at<uint8_t>(a.recent_v, unit.stream * a.recent_v_stream_stride + unit.head * a.recent_v_head_stride);
  }
  block.row_max = state.row_max;
  block.row_sum = state.row_sum;
  block.acc = state.acc;
  block.scratch = scratch;
  call.kernels->attend(block);
}

// Adds the sinks, divides, rotates back and writes the rows of a unit. Spends the state.
void write_unit(const AttentionCall& call, const Unit& unit, const State& state) {
  const kvt_attention& a = *call.args;
  const unsigned d = call.value->head_dim;
  for (unsigned row = 0; row < unit.n_queries * a.n_group; ++row) {
    const size_t head = size_t{unit.head} * a.n_group + row % a.n_group, query = unit.first_query + row / a.n_group;
    float* acc = state.acc + size_t{row} * d;
    float denominator = state.row_sum[row];
    if (a.sinks != nullptr) {
      const float sink = a.sinks[head], largest = state.row_max[row];
      if (sink > largest) {
        const float rescale = std::exp(largest - sink);  // 0 for a row without cells
        denominator = denominator * rescale + 1.0f;
        for (unsigned i = 0; i < d; ++i) acc[i] *= rescale;
      } else if (largest > -std::numeric_limits<float>::infinity()) {  // a sink of -inf on a row without cells adds nothing
        denominator += std::exp(sink - largest);
      }
    }
    auto* out = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(a.out) + unit.stream * a.out_stream_stride +
                                         query * a.out_query_stride + head * a.out_head_stride);
    call.kernels->finish_row(*call.value, acc, denominator, out);
  }
}

// into <- into + from, both relative to their own maxima.
void merge_state(const State& into, const State& from, unsigned rows, unsigned d) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  for (unsigned row = 0; row < rows; ++row) {
    const float largest = std::max(into.row_max[row], from.row_max[row]);
    const float a = into.row_max[row] == kNone ? 0.0f : std::exp(into.row_max[row] - largest);
    const float b = from.row_max[row] == kNone ? 0.0f : std::exp(from.row_max[row] - largest);
    into.row_max[row] = largest;
    into.row_sum[row] = into.row_sum[row] * a + from.row_sum[row] * b;
    for (unsigned i = 0; i < d; ++i) {
      into.acc[size_t{row} * d + i] = into.acc[size_t{row} * d + i] * a + from.acc[size_t{row} * d + i] * b;
    }
  }
}

// Pages of the whole list before thread's share.
uint64_t share_start(const Plan& plan, unsigned thread, unsigned n_threads) {
  return uint64_t{plan.n_units} * plan.n_pages * thread / n_threads;
}

void attend_split(const AttentionCall& call, const Plan& plan, uint8_t* workspace, unsigned thread, unsigned n_threads) {
  // counters[t]: visits to the cut unit whose first page thread t holds. A thread holds the first page of at most one cut unit,
  // the last of its share.
  auto* counters = reinterpret_cast<std::atomic<uint8_t>*>(workspace);
  uint8_t* partials = workspace + plan.partial_offset;
  uint8_t* scratch = workspace + plan.scratch_offset + thread * plan.scratch_bytes;
  const uint64_t begin = share_start(plan, thread, n_threads), end = share_start(plan, thread + 1, n_threads);
  for (uint64_t page = begin; page < end;) {
    const auto index = static_cast<unsigned>(page / plan.n_pages);
    const uint64_t unit_begin = uint64_t{index} * plan.n_pages, unit_end = unit_begin + plan.n_pages;
    const Unit unit = unit_at(call, plan, index);
    const unsigned rows = unit.n_queries * call.args->n_group;
    const State state(partials + size_t{index + thread} * plan.partial_bytes, rows);
    const uint64_t stop = std::min(end, unit_end);
    run_unit(call, unit, static_cast<unsigned>(page - unit_begin), static_cast<unsigned>(stop - unit_begin), state, scratch);
    page = stop;
    // The threads that touch this unit: from the one that holds its first page to the one that holds its last.
    unsigned first = thread, last = thread;
    while (share_start(plan, first, n_threads) > unit_begin) --first;
    while (share_start(plan, last + 1, n_threads) < unit_end) ++last;
    if (first != last) {
      unsigned visitors = 0;
      for (unsigned t = first; t <= last; ++t) visitors += share_start(plan, t, n_threads) < share_start(plan, t + 1, n_threads);
      if (counters[first].fetch_add(1, std::memory_order_acq_rel) + 1u != visitors) continue;
      counters[first].store(0, std::memory_order_relaxed);
      const State merged(partials + size_t{index + first} * plan.partial_bytes, rows);
      bool started = false;
      for (unsigned t = first; t <= last; ++t) {
        if (share_start(plan, t, n_threads) == share_start(plan, t + 1, n_threads)) continue;
        const State part(partials + size_t{index + t} * plan.partial_bytes, rows);
        if (started) merge_state(merged, part, rows, call.value->head_dim);
        started = true;
      }
      write_unit(call, unit, merged);
    } else {
      write_unit(call, unit, state);
    }
  }
}

}  // namespace

size_t attention_workspace_bytes(const AttentionCall& call, unsigned n_threads) { return make_plan(call, n_threads).total_bytes; }

void attend_share(const AttentionCall& call, uint8_t* workspace, unsigned thread, unsigned n_threads) {
  const Plan plan = make_plan(call, n_threads);
  if (plan.split) {
    const unsigned n_split = std::min(n_threads, kMaxSplitThreads);
    if (thread < n_split) attend_split(call, plan, workspace, thread, n_split);
    return;
  }
  uint8_t* scratch = workspace + plan.scratch_offset + thread * plan.scratch_bytes;
  uint8_t* state_at = scratch + attend_scratch_bytes(*call.key, *call.value);
  for (unsigned index = thread; index < plan.n_units; index += n_threads) {
    const Unit unit = unit_at(call, plan, index);
    const State state(state_at, unit.n_queries * call.args->n_group);
    run_unit(call, unit, 0, plan.n_pages, state, scratch);
    write_unit(call, unit, state);
  }
}

}  // namespace kvt::cpu
