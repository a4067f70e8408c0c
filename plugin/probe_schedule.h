// When to probe whether a codec fits the keys of a layer (fit_probe.h).
#ifndef KVT_PLUGIN_PROBE_SCHEDULE_H
#define KVT_PLUGIN_PROBE_SCHEDULE_H

#include <cstdint>

namespace kvt::plugin {

// After 64 rows, and each time that the rows have doubled, since keys drift with their position.
class ProbeSchedule {
 public:
  // n_rows more were written.
  void add_rows(int64_t n_rows) { n_rows_ += n_rows; }
  // True once for each time.
  bool is_due() {
    if (n_rows_ < next_) return false;
    while (next_ <= n_rows_) next_ *= 2;
    return true;
  }
  void reset() { *this = {}; }

 private:
  int64_t n_rows_ = 0, next_ = 64;
};

}  // namespace kvt::plugin

#endif
