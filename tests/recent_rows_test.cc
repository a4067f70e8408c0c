// The list of the newest rows (plugin/recent_rows.h) against a plain history of all writes.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "recent_rows.h"

namespace kvt::plugin {

// The one function of the host that the class calls; small whole numbers are their own fp16 here.
const HostGgml& host() {
  static HostGgml fake = [] {
    HostGgml h{};
    h.ggml_fp32_to_fp16_row = [](const float* from, ggml_fp16_t* to, int64_t n) {
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<ggml_fp16_t>(from[i]);
    };
    return h;
  }();
  return fake;
}

namespace {

constexpr size_t kStreams = 2, kHeads = 3, kHeadDim = 4, kWindow = 16, kCells = 400;

struct Write {
  int32_t cell;
  uint16_t value;  // of head 0; head h holds value + h
};

class RecentRowsTest : public testing::Test {
 protected:
  uint32_t random(uint32_t n) {
    state_ = state_ * 1664525u + 1013904223u;
    return (state_ >> 8) % n;
  }

  // One batch of n rows; cells from a choice that makes repeats likely if is_wild.
  void write(size_t n, bool is_wild) {
    batch_.rows.resize(n);
    std::vector<float> values(n * kHeads * kHeadDim);
    for (size_t i = 0; i < n; ++i) {
      const size_t stream = random(kStreams);
      batch_.rows[i].stream = static_cast<int32_t>(stream);
      const auto cell = static_cast<int32_t>(is_wild ? random(40) : next_cell_[stream]++ % kCells);
      batch_.rows[i].cell = cell;
      ++n_written_;
      for (size_t head = 0; head < kHeads; ++head) {
        std::fill_n(values.begin() + static_cast<ptrdiff_t>((i * kHeads + head) * kHeadDim), kHeadDim,
                    static_cast<float>(n_written_ + head));
      }
      forget(stream, cell);
      history_[stream].push_back({cell, static_cast<uint16_t>(n_written_)});
    }
    rows_.plan_batch(&batch_);
    rows_.begin_batch(&batch_);
    memory_.reset(new ggml_fp16_t[rows_.memory_values(batch_) + 1]);
    batch_.memory = memory_.get();
    for (size_t head = 0; head < kHeads; ++head) rows_.write_batch(&batch_, head, values.data() + head * kHeadDim, kHeads * kHeadDim);
  }

  void forget(size_t stream, int32_t cell) {
    std::erase_if(history_[stream], [&](const Write& w) { return w.cell == cell; });
  }

  // The entries of a list are the history's last writes in their order, with their rows; gaps are allowed, other cells are not.
  void check(const RecentList& list, size_t stream, size_t n_at_least) {
    const std::vector<Write>& history = history_[stream];
    size_t at = history.size(), n_found = 0;
    for (size_t e = list.n_entries; e-- > 0;) {
      const int32_t cell = list.cells[stream * list.n_entries + e];
      if (cell < 0) continue;
      ASSERT_GT(at, 0u);
      --at;
      ASSERT_EQ(cell, history[at].cell);
      ++n_found;
      for (size_t head = 0; head < kHeads; ++head) {
        const ggml_fp16_t* row = list.rows + ((stream * kHeads + head) * list.n_entries + e) * kHeadDim;
        for (size_t i = 0; i < kHeadDim; ++i) ASSERT_EQ(row[i], history[at].value + head);
      }
    }
    EXPECT_GE(n_found, std::min(n_at_least, history.size()));
  }

  void check_all(size_t n_at_least) {
    for (size_t s = 0; s < kStreams; ++s) {
      check(rows_.list_of(nullptr), s, n_at_least);
      check(rows_.list_of(&batch_), s, n_at_least);
    }
  }

  RecentRows rows_{kStreams, kHeads, kHeadDim, kWindow};
  RecentRows::Batch batch_;
  std::unique_ptr<ggml_fp16_t[]> memory_;
  std::vector<Write> history_[kStreams];
  size_t next_cell_[kStreams] = {0, 0};
  size_t n_written_ = 0;
  uint32_t state_ = 1;
};

TEST_F(RecentRowsTest, NewCells) {
  const size_t sizes[] = {1, 1, 2, 8, 9, 40, 1, 200, 3, 17, 1, 1};
  for (int round = 0; round < 40; ++round) {
    write(round < 12 ? sizes[round] : 1 + random(30), false);
    check_all(kWindow);
    if (HasFatalFailure()) return;
  }
}

// Every row of a large batch finds a whole window before it in the batch's own list.
TEST_F(RecentRowsTest, ALargeBatchKeepsWhatItsFirstRowsNeed) {
  for (int i = 0; i < 30; ++i) write(2, false);
  write(100, false);
  const RecentList list = rows_.list_of(&batch_);
  for (size_t s = 0; s < kStreams; ++s) {
    size_t n_before = 0;
    for (size_t e = 0; e < list.n_entries; ++e) {
      const int32_t cell = list.cells[s * list.n_entries + e];
      const bool is_new = std::any_of(batch_.rows.begin(), batch_.rows.end(), [&](const RecentRows::Batch::Row& row) {
        return row.stream == static_cast<int32_t>(s) && row.batch_entry == static_cast<int32_t>(e);
      });
      n_before += cell >= 0 && !is_new;
    }
    EXPECT_GE(n_before, kWindow);
    check(list, s, kWindow + 10);
  }
}

TEST_F(RecentRowsTest, CellsWrittenAgain) {
  for (int round = 0; round < 300; ++round) {
    write(1 + random(random(4) == 0 ? 60 : 4), true);
    check_all(1);
    if (HasFatalFailure()) return;
  }
}

// Speculative decoding: each batch but for its first row is rejected, and the next one takes its cells. Whatever it is that attention
// reads, the last token before the batch finds a whole window.
TEST_F(RecentRowsTest, RejectedDraftsDoNotPushOutTheWindow) {
  for (size_t n_drafts = 1; n_drafts <= RecentRows::kSlack; ++n_drafts) {
    rows_.clear();
    for (int32_t first = 0; first < 100; ++first) {
      batch_.rows = std::vector<RecentRows::Batch::Row>(1 + n_drafts);
      for (size_t i = 0; i < batch_.rows.size(); ++i) batch_.rows[i].cell = first + static_cast<int32_t>(i);
      rows_.plan_batch(&batch_);
      rows_.begin_batch(&batch_);
      for (const RecentList& list : {rows_.list_of(nullptr), rows_.list_of(&batch_)}) {
        const auto n_before = std::count_if(list.cells, list.cells + list.n_entries, [&](int32_t cell) { return cell >= 0 && cell < first; });
        // What is kept for later steps holds the rows of the batch as well, of which only the first stays.
        const size_t n_wanted = list.cells == rows_.list_of(nullptr).cells ? kWindow - 1 : kWindow;
        ASSERT_GE(static_cast<size_t>(n_before), std::min<size_t>(n_wanted, static_cast<size_t>(first))) << n_drafts << " " << first;
      }
    }
  }
}

// A graph that stops after some heads: the next steps find every older row in its place.
TEST_F(RecentRowsTest, AnAbandonedBatchLeavesNoTrace) {
  for (int round = 0; round < 60; ++round) {
    write(1 + random(12), false);
    const size_t stream = random(kStreams), n = 1 + random(30);
    batch_.rows = std::vector<RecentRows::Batch::Row>(n);
    std::vector<float> values(n * kHeadDim, -1.0f);
    for (size_t i = 0; i < n; ++i) {
      batch_.rows[i].stream = static_cast<int32_t>(stream);
      batch_.rows[i].cell = static_cast<int32_t>((next_cell_[stream] + i) % kCells);
    }
    rows_.plan_batch(&batch_);
    rows_.begin_batch(&batch_);
    memory_.reset(new ggml_fp16_t[rows_.memory_values(batch_) + 1]);
    batch_.memory = memory_.get();
    const size_t n_heads_done = random(kHeads + 1);
    for (size_t head = 0; head < n_heads_done; ++head) rows_.write_batch(&batch_, head, values.data(), kHeadDim);
    rows_.abandon_batch(batch_);
    for (size_t s = 0; s < kStreams; ++s) check(rows_.list_of(nullptr), s, 0);
    if (HasFatalFailure()) return;
  }
}

// Sequences that share a stream, by what their queries see: each keeps its last window, however long it rests, and its first rows.
TEST_F(RecentRowsTest, SequencesOfOneStream) {
  constexpr size_t kSequences = 5, kFirst = 2;
  constexpr uint16_t kRemoved = 0xfc00;
  RecentRows rows(1, kHeads, kHeadDim, kWindow);
  std::vector<Write> written[kSequences];
  int32_t next_cell = 10;
  uint16_t value = 0;
  for (int step = 0; step < 300; ++step) {
    const size_t n = 1 + random(random(10) == 0 ? 40 : 4), resting = static_cast<size_t>(step / 60);
    RecentRows::Batch batch;
    batch.rows.resize(n);
    std::vector<uint16_t> mask(n * kCells * 4, kRemoved);
    std::vector<float> values;
    for (size_t i = 0; i < n; ++i) {
      size_t sequence = random(kSequences);
      if (sequence == resting) sequence = (sequence + 1) % kSequences;
      batch.rows[i].cell = next_cell;
      written[sequence].push_back({next_cell++, ++value});
      for (const Write& w : written[sequence]) mask[i * kCells * 4 + static_cast<size_t>(w.cell)] = 0;
      for (size_t head = 0; head < kHeads; ++head) values.insert(values.end(), kHeadDim, static_cast<float>(value + head));
    }
    ASSERT_LT(next_cell, static_cast<int32_t>(kCells * 4));
    const BatchSight sight{reinterpret_cast<const char*>(mask.data()), kCells * 4 * 2, 0, n, kCells * 4};
    rows.plan_batch(&batch, sight, kFirst);
    rows.begin_batch(&batch);
    std::vector<ggml_fp16_t> memory(rows.memory_values(batch) + 1);
    batch.memory = memory.data();
    for (size_t head = 0; head < kHeads; ++head) rows.write_batch(&batch, head, values.data() + head * kHeadDim, kHeads * kHeadDim);
    for (const std::vector<Write>& sequence : written) {
      for (size_t i = 0; i < sequence.size(); ++i) {
        const bool is_first = i < kFirst, is_newest = i + kWindow >= sequence.size();
        for (size_t head = 0; (is_first || is_newest) && head < kHeads; ++head) {
          const ggml_fp16_t* row = rows.row(0, head, sequence[i].cell);
          ASSERT_NE(row, nullptr) << step << " " << i << " of " << sequence.size();
          ASSERT_EQ(*row, sequence[i].value + head);
        }
      }
    }
    const RecentList list = rows.list_of(&batch);
    const int32_t* entries_end = list.cells + list.n_entries;
    for (const std::vector<Write>& sequence : written) {
      for (size_t i = 0; i < std::min(kFirst, sequence.size()); ++i) {
        EXPECT_LT(std::find(list.cells, entries_end, sequence[i].cell) - list.cells, static_cast<ptrdiff_t>(list.n_pinned));
      }
    }
  }
  EXPECT_LT(rows.capacity(), kSequences * (kWindow + kFirst) + 40);
}

TEST_F(RecentRowsTest, RowsThatComeOneByOne) {
  for (int32_t cell = 0; cell < 50; ++cell) {
    rows_.append(1, cell);
    for (size_t head = 0; head < kHeads; ++head) {
      std::fill_n(rows_.row(1, head, cell), kHeadDim, static_cast<ggml_fp16_t>(cell + static_cast<int32_t>(head)));
    }
    history_[1].push_back({cell, static_cast<uint16_t>(cell)});
  }
  check(rows_.list_of(nullptr), 1, kWindow);
  EXPECT_EQ(rows_.row(1, 0, 3), nullptr);  // long gone
  EXPECT_EQ(rows_.row(0, 0, 49), nullptr);
  rows_.append_from(rows_, 1, 0, 40, 48);
  history_[0].assign(history_[1].begin() + 40, history_[1].begin() + 48);
  check(rows_.list_of(nullptr), 0, 8);
  rows_.forget(1, 45, 400);
  history_[1].resize(45);
  check(rows_.list_of(nullptr), 1, 5);
  rows_.clear();
  EXPECT_EQ(rows_.row(1, 0, 44), nullptr);
}

}  // namespace
}  // namespace kvt::plugin
