// One table of function pointers for each instruction set; all tables do the same work.
#ifndef KVT_CPU_KERNEL_TABLE_H
#define KVT_CPU_KERNEL_TABLE_H

#include <cstddef>
#include <cstdint>

#include "format/page_layout.h"

namespace kvt::cpu {

// Query rows that one pass over the pages serves: all rows share each unpacking of a page.
inline constexpr unsigned kMaxRows = 64;

// One pass: n_rows query rows of one kv head over the cells [first_cell, end_cell).
// Rows are ordered query-major: row = query * n_group + head in the group.
struct AttendBlock {
  const SideLayout* key;
  const SideLayout* value;
  const uint8_t* k_pages;  // page 0 of this head
  const uint8_t* v_pages;
  size_t k_page_stride, v_page_stride;

  unsigned n_group;
  unsigned n_queries;  // n_rows = n_queries * n_group <= kMaxRows
  unsigned first_cell;  // a multiple of kPageTokens
  unsigned end_cell;

  const uint8_t* q;  // row (query, g): (const float*)(q + query * q_query_stride + g * q_head_stride)
  size_t q_query_stride, q_head_stride;
  const uint8_t* mask;  // fp16 rows, may be nullptr; strides in bytes
  size_t mask_query_stride, mask_head_stride;
  const float* slopes;  // [n_group] or nullptr
  float scale, softcap;

  const float* key_scale;  // [head_dim_k] or nullptr
  const int8_t* key_mean;  // [][head_dim_k] or nullptr: of mean_cells cells each, in units of key_mean_unit
  const float* key_mean_unit;
  unsigned mean_cells;

  // Cells that are attended through fp16 rows (kvt_attention): every pass leaves their codes out, one pass takes their rows.
  bool takes_exact;
  unsigned n_cells;        // of the stream
  unsigned n_exact;
  const uint8_t* exact_k;  // [n_exact][head_dim_k] fp16
  const uint8_t* exact_v;  // [n_exact][head_dim_v] fp16
  unsigned n_recent, recent_window, recent_pinned, recent_own;  // recent_own: entry of the block's first query
  const int32_t* recent_cells;
  const uint8_t* recent_k;  // [n_recent][head_dim_k] fp16
  const uint8_t* recent_v;

  // Running state of the online softmax, written from scratch by each pass.
  float* row_max;  // [n_rows], -inf if no cell was seen
  float* row_sum;  // [n_rows] sum of exp(score - max)
  float* acc;      // [n_rows][head_dim_v] sum of exp(score - max) * value, in the rotated basis and in units of `value_unit`

  uint8_t* scratch;  // attend_scratch_bytes, 64-byte aligned
};

// Scratch of one pass, upper bound over all kernels.
size_t attend_scratch_bytes(const SideLayout& key, const SideLayout& value);

struct KernelTable {
  const char* name;
  // Writes row x [head_dim] to a slot: the bytes of reference::encode_row.
  void (*encode_row)(const SideLayout& layout, const float* x, uint8_t* page, unsigned slot);
  // fp32 <-> fp16, nearest even; n: a multiple of 16.
  void (*floats_to_halves)(const float* from, size_t n, uint8_t* to);
  void (*halves_to_floats)(const uint8_t* from, size_t n, float* to);
  // Fills the state of a block.
  void (*attend)(const AttendBlock& block);
  // What attend's scores are made of, for tests: sums[row][token] of (level + kLevelOffset) * query over a page of keys, and in the second
  // half of sketch signs, if the codec has them, times sketch_query. At most 4 rows [n_rows][head_dim]; sums: [2][4][64].
  // decodes_in_registers: as for few rows, without the scratch that many rows share; ignored where there is no such way.
  void (*sum_keys)(const SideLayout& key, const uint8_t* page, const int8_t* query, const int8_t* sketch_query, unsigned n_rows,
                   bool decodes_in_registers, uint8_t* scratch, int32_t* sums);
  // out[head_dim] <- (1 / denominator) * R^T acc, scaled to values; acc is overwritten.
  void (*finish_row)(const SideLayout& value, float* acc, float denominator, float* out);
};

extern const KernelTable kKernelsScalar;
#ifdef KVT_HAVE_AVX2
extern const KernelTable kKernelsAvx2;
#endif
#ifdef KVT_HAVE_AVXVNNI
extern const KernelTable kKernelsAvxVnni;
#endif
#ifdef KVT_HAVE_AVX512
extern const KernelTable kKernelsAvx512;
#endif
#ifdef KVT_HAVE_NEON
extern const KernelTable kKernelsNeon;
#endif

}  // namespace kvt::cpu

#endif
