// Rows of saved states: what hosts read from a cache to save it, and write to restore it (docs/format.md 9, docs/design.md).
//
// Rows that attention reads exactly are saved as they are; all others carry their codes in the low bits of their values, and keys the
// conditioning that the codes belong to, in pieces. So a restored cache holds the same codes, exact rows and conditioning. Rows without
// codes in them, from stock f16, are new rows like any other.
//
// Keys may come before it is known how they are conditioned: they wait until the pieces are together, or until the host goes on.
#ifndef KVT_PLUGIN_STATE_ROWS_H
#define KVT_PLUGIN_STATE_ROWS_H

#include <map>
#include <memory>
#include <vector>

#include "cache_tensor.h"
#include "format/state_row.h"

namespace kvt::plugin {

// Rows first_row .. first_row + n_rows - 1, dense, of n_values halves. The cache is in state kPages.
void state_get_rows(CacheTensor* cache, int64_t first_row, int64_t n_rows, ggml_fp16_t* dst);
void state_set_rows(CacheTensor* cache, int64_t first_row, int64_t n_rows, const ggml_fp16_t* src);

// Stores the rows that wait. To be called before anything else is done with a cache.
void state_settle(CacheTensor* cache);
// Forgets them: the cache is empty again.
void state_drop(CacheTensor* cache);
// The same for the caches that a graph works on, before it runs, and forgets what waits no more. Other contexts may be in the middle of a
// restore: theirs are left alone. Cheap if nothing was set.
void state_settle_caches_of(const ggml_cgraph* graph);

// Keys that wait for their conditioning.
struct WaitingKeys {
  struct Row {
    int64_t row;
    std::vector<ggml_fp16_t> values;
    std::unique_ptr<StateRow> codes;  // nullptr: a row without
    bool is_first;                    // of its sequence
  };
  std::vector<Row> rows;                           // in the order in which they came
  std::map<uint32_t, ConditioningPieces> pieces;   // by digest
};

}  // namespace kvt::plugin

#endif
