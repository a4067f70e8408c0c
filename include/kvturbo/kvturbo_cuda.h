/* kvturbo on NVIDIA GPUs: encode and decode attention on the same page bytes as the CPU library (docs/format.md).
 *
 * Everything works on device memory of the caller, on the caller's stream: no allocation, no synchronisation, no global state.
 * A call only launches kernels, so it can be captured into a CUDA graph and replayed; what may change between replays lies in
 * device memory (lengths, page tables, cells, rows). Kernels are loaded at their first launch: call once before a capture.
 *
 * Contents cannot be reported by status, since nothing waits for the GPU: they are counted in device memory (n_refused) or have
 * a stated meaning (a negative cell skips its row). Functions may be called from several threads; the current device must be
 * the stream's.
 *
 * A page may be written by the CPU and read here, or the reverse: kvt_cuda_encode writes the bytes that kvt_encode writes,
 * since both carry out format.md section 5 operation for operation, none fused.
 *
 * Devices: compute capability 8.0 and later. Statuses are those of kvturbo.h. Structures begin with struct_size and may grow at
 * their end. */
#ifndef KVTURBO_CUDA_H
#define KVTURBO_CUDA_H

#include "kvturbo/kvturbo.h"

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;
typedef struct CUstream_st* kvt_cuda_stream; /* cudaStream_t */

typedef enum kvt_cuda_type { KVT_CUDA_F32 = 0, KVT_CUDA_F16 = 1, KVT_CUDA_BF16 = 2 } kvt_cuda_type;
typedef enum kvt_cuda_index_type { KVT_CUDA_I64 = 0, KVT_CUDA_I32 = 1 } kvt_cuda_index_type;

#define KVT_CUDA_PAGE_ALIGNMENT 16 /* of page addresses and of all page strides, bytes */
#define KVT_CUDA_MAX_GROUP 16      /* query heads for each kv head */
#define KVT_CUDA_MAX_QUERIES 8     /* query tokens for each stream: decode and drafts */
#define KVT_CUDA_MAX_RING 128      /* newest rows that a stream can keep in fp16 */

/* KVT_OK if the current device can run the kernels of this build; KVT_ERROR_CUDA_DEVICE if its compute capability is too low or
 * there is none, KVT_ERROR_CUDA if the driver does not answer. */
KVT_API kvt_status kvt_cuda_device_status(void);

/* ---- exact rows ------------------------------------------------------------------------------------------------- */

/* fp16 rows that one cache tensor keeps beside its codes, raw (not conditioned): the first cells of each stream, and a ring of
 * the rows written last. This structure lies in host memory and is read during a call; all it points to is device memory of
 * the caller, 16-byte aligned as its strides are, which are bytes. Not for f16.
 *
 * ring_cells and ring_next say what the ring holds: slot e has the row of cell ring_cells[e], or none where that is negative;
 * ring_next is the slot that the next row goes to, so the newest row is in the slot before it, and so on round the ring. An
 * empty ring: ring_cells filled with bytes 0xff, ring_next with 0. Tensors that are always written with the same cells in the
 * same order (the keys and values of all layers) have equal rings. */
typedef struct kvt_cuda_exact_rows {
  uint32_t struct_size;
  uint32_t n_streams; /* of the tensor, from `first` and `ring` on */
  uint32_t n_first;   /* 0 .. KVT_MAX_EXACT */
  uint32_t capacity;  /* slots of the ring, 0 .. KVT_CUDA_MAX_RING; 0: none, and the ring's pointers may be NULL */

  uint16_t* first; /* [n_streams, n_kv_heads, n_first, head_dim], rows contiguous; NULL if n_first is 0 */
  size_t first_head_stride, first_stream_stride;
  uint16_t* ring; /* [n_streams, n_kv_heads, capacity, head_dim], rows contiguous */
  size_t ring_head_stride, ring_stream_stride;
  int32_t* ring_cells; /* [n_streams, capacity] */
  uint32_t* ring_next; /* [n_streams] */
} kvt_cuda_exact_rows;

/* ---- encode ----------------------------------------------------------------------------------------------------- */

/* Writes row i of every kv head into cell cells[i]: page cells[i] / KVT_PAGE_TOKENS, slot cells[i] % KVT_PAGE_TOKENS. With a
 * page table the caller resolves it: cells then number the pool's cells, page * KVT_PAGE_TOKENS + slot.
 * With cells_per_stream the cells number all streams' cells in turn: cell c is cell c % cells_per_stream of stream
 * c / cells_per_stream. */
typedef struct kvt_cuda_encode_args {
  uint32_t struct_size;
  kvt_codec_id codec;
  kvt_side side;
  uint32_t head_dim; /* 64, 80, 96, 112, 128, 192, 256 */
  uint32_t n_rows;   /* 0 is allowed */
  uint32_t n_kv_heads;

  kvt_cuda_type src_type;
  const void* src; /* device [n_rows, n_kv_heads, head_dim], head_dim contiguous; strides in bytes; aligned to its elements */
  size_t src_row_stride, src_head_stride;

  const void* cells; /* device [n_rows] of cells_type; a row whose cell, after cell_offset, is negative is skipped. The others of
                        one call must differ from one another. */

  void* pages; /* device; page p of head h of stream s at pages + s * stream_stride + h * head_stride + p * page_stride bytes */
  size_t page_stride, head_stride;

  /* Device, may be NULL: incremented by one for each row of a head that kvt_encode would refuse (NaN, infinity, beyond fp16 for
   * the f16 codec). Such a row is stored as engines store it: NaN norm and codes 0, or for f16 the value itself. */
  uint32_t* n_refused;

  kvt_cuda_index_type cells_type;
  int64_t cell_offset;      /* added to every cell: where a view of the cache begins */
  int64_t cells_per_stream; /* 0: one stream */
  size_t stream_stride;

  /* 1: values are rounded to fp16 first, so that a cache that was saved as fp16 restores to the same bytes. */
  uint32_t round_to_half;
  /* Conditioning of keys (kvt_attention): what is encoded is (x - unit * mean) * inverse_scale, each operation rounded. Device, all or
   * none NULL; keys only, not for f16. key_inverse_scale: [n_kv_heads, head_dim], one for all cells. key_mean: int8 [n_streams,
   * n_kv_heads, n_means, head_dim], contiguous from n_means on: mean m is that of cells m * mean_cells .. of a stream, in units of
   * key_mean_unit [n_streams, n_kv_heads, n_means]. A unit below 0 marks a mean that is not set: its codes must be 0, and it counts as 0.
   * mean_cells: a multiple of KVT_PAGE_TOKENS. Strides in bytes; those of key_mean multiples of 16, key_mean 16-byte aligned. Cells of a
   * stream must fit int32. The means are written by kvt_cuda_begin_means alone. */
  const float* key_inverse_scale;
  size_t key_scale_head_stride;
  int8_t* key_mean;
  size_t key_mean_head_stride, key_mean_stream_stride;
  float* key_mean_unit;
  size_t key_mean_unit_head_stride, key_mean_unit_stream_stride;
  uint32_t mean_cells;

  /* Device, as src (type and strides), may be NULL. A row of a head that equals it bit for bit is left as it is: nothing is written
   * for it, neither codes nor exact rows. For ranges that were decoded, changed in part, and are written back. */
  const void* unchanged;

  /* Host, may be NULL: the exact rows of the same tensor, which the same launch brings up to date. Rows of cells below n_first
   * replace the first rows. In a batch of many rows of one stream, only the last `capacity` rows enter its ring; an older row of
   * a cell that is written leaves it. Cells must fit int32. */
  const kvt_cuda_exact_rows* exact;
  /* 0: rows are new and go to the ring. 1: rows change cells in place: a cell that has a row in the ring gets the new one in its
   * slot, other cells get none. (unchanged needs 1.) */
  uint32_t exact_in_place;
} kvt_cuda_encode_args;

/* Other cells keep their contents. Calls that write distinct cells of one page may run at the same time, unless they have exact
 * rows of one tensor.
 * Returns KVT_OK (launched), KVT_ERROR_INVALID_ARGUMENT, _UNKNOWN_CODEC, _HEAD_DIM, or _CUDA (a launch failed: cudaGetLastError
 * says why). */
KVT_API kvt_status kvt_cuda_encode(const kvt_cuda_encode_args* args, kvt_cuda_stream stream);

/* The same for keys and values of one layer in one launch, which takes little longer than either alone if there are few rows. They
 * have equal codec, n_rows and n_kv_heads. */
KVT_API kvt_status kvt_cuda_append(const kvt_cuda_encode_args* keys, const kvt_cuda_encode_args* values, kvt_cuda_stream stream);

/* Means that follow the text (docs/algorithm.md 6). `keys` are the arguments of the encode or append call that follows. For every row
 * whose cell lies in a run of mean_cells cells without a mean, the run's mean is set in every head, from what the cells of the run
 * before decode to; cells below keys->exact->n_first, empty ones and the last 16 of the run are left out. With fewer than 64 such
 * cells it takes over the mean of the nearest run before that has one, or none: zeros. Means that are set stay as they are, so calling
 * it before every append is right, and costs a look at each row's unit. An empty cache: units filled with -1.0f, codes with 0.
 * key_scale: device, as key_inverse_scale, its reciprocal.
 *
 * Cells that the prediction is made from must be stored: append a batch in parts that begin where runs of cells do, each with a call
 * of this before it. Up to 16 rows of consecutive cells need no parts: those before the run's first cell are left out anyway.
 * Returns KVT_OK (launched, or nothing to do), KVT_ERROR_INVALID_ARGUMENT (also without means), _UNKNOWN_CODEC, _HEAD_DIM, or _CUDA. */
KVT_API kvt_status kvt_cuda_begin_means(const kvt_cuda_encode_args* keys, const float* key_scale, kvt_cuda_stream stream);

/* ---- decode ----------------------------------------------------------------------------------------------------- */

/* Cells first_cell .. first_cell + n_cells - 1 of each stream and head, as rows: what kvt_decode gives, with the conditioning of
 * keys undone (x * scale + unit * mean) and exact rows in place of codes where there are any. */
typedef struct kvt_cuda_decode_args {
  uint32_t struct_size;
  kvt_codec_id codec;
  kvt_side side;
  uint32_t head_dim;
  uint32_t n_streams;
  uint32_t n_kv_heads;
  uint32_t first_cell, n_cells; /* n_cells = 0 is allowed */

  const void* pages; /* device, as in kvt_cuda_encode_args */
  size_t page_stride, head_stride, stream_stride;

  kvt_cuda_type dst_type;
  void* dst; /* device [n_streams, n_cells, n_kv_heads, head_dim], head_dim contiguous, 16-byte aligned as its strides are */
  size_t dst_row_stride, dst_head_stride, dst_stream_stride; /* bytes */

  /* As in kvt_cuda_encode_args, with key_scale [n_kv_heads, head_dim] in place of its reciprocal. */
  const float* key_scale;
  size_t key_scale_head_stride;
  const int8_t* key_mean;
  size_t key_mean_head_stride, key_mean_stream_stride;
  const float* key_mean_unit;
  size_t key_mean_unit_head_stride, key_mean_unit_stream_stride;
  uint32_t mean_cells;

  const kvt_cuda_exact_rows* exact; /* host, may be NULL: of the same tensor, its streams beginning at the first one decoded */
  uint32_t recent_window; /* of the ring only the newest so many rows are used, 0 .. capacity: what lies beyond a window depends on how
                             rows were written */
} kvt_cuda_decode_args;

/* Returns KVT_OK (launched), KVT_ERROR_INVALID_ARGUMENT, _UNKNOWN_CODEC, _HEAD_DIM, or _CUDA. */
KVT_API kvt_status kvt_cuda_decode(const kvt_cuda_decode_args* args, kvt_cuda_stream stream);

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* What one step of a model needs to know of its mask, worked out once and then read by kvt_cuda_attend of every layer: which pages
 * all queries see whole, which none sees, and which cells each query attends exactly. Exact are, as in kvt_attention, the
 * first n_first cells and for each query the newest `window` rows of the ring that it sees (cell >= n_first, cell < n_cells,
 * mask above -inf). All pointers are device memory. */
typedef struct kvt_cuda_step_args {
  uint32_t struct_size;
  uint32_t n_streams;
  uint32_t n_queries; /* 1 to KVT_CUDA_MAX_QUERIES */
  uint32_t n_cells;   /* of each stream */

  const uint16_t* mask; /* fp16 [n_streams, n_queries, n_cells], cells contiguous; strides in bytes, 0 broadcasts; NULL: all cells
                           are seen by all queries */
  size_t mask_query_stride, mask_stream_stride;

  uint32_t n_first;           /* 0 .. KVT_MAX_EXACT */
  uint32_t window;            /* 0 .. KVT_MAX_RECENT, at most capacity */
  uint32_t capacity;          /* of the ring; 0: none */
  const int32_t* ring_cells;  /* [n_streams, capacity], of any tensor of the step: their rings are equal */
  const uint32_t* ring_next;  /* [n_streams] */
} kvt_cuda_step_args;

/* Bytes of device memory that a step needs; 0 on invalid arguments. The pointers are not looked at. */
KVT_API size_t kvt_cuda_step_bytes(const kvt_cuda_step_args* args);

/* One launch. step: 256-byte aligned; it may be used by any number of kvt_cuda_attend calls after this one on the stream.
 * Rows must have gone to the ring before (kvt_cuda_encode), their mask be complete.
 * Returns KVT_OK (launched), KVT_ERROR_INVALID_ARGUMENT, _DST_TOO_SMALL, or _CUDA. */
KVT_API kvt_status kvt_cuda_prepare_step(const kvt_cuda_step_args* args, void* step, size_t step_bytes, kvt_cuda_stream stream);

/* ---- attention -------------------------------------------------------------------------------------------------- */

/* Decode attention: one to eight query tokens for each stream (sequence) over its compressed pages; the formulas are those of
 * kvt_attention. All pointers are device memory, all strides bytes unless said otherwise.
 * Head dims (K, V): (64, 64), (128, 128), (256, 256), (192, 128); others are KVT_ERROR_HEAD_DIM. */
typedef struct kvt_cuda_attention {
  uint32_t struct_size;
  kvt_codec_id codec;
  uint32_t head_dim_k, head_dim_v;

  uint32_t n_streams;
  uint32_t n_kv_heads;
  uint32_t n_group;   /* 1 to KVT_CUDA_MAX_GROUP */
  uint32_t n_queries; /* 1 to KVT_CUDA_MAX_QUERIES */

  uint32_t max_cells; /* cells of the longest stream, or any bound of it: sizes the launch */
  const int32_t*
      lengths; /* [n_streams], 0 .. max_cells: cells of each stream; NULL: all have max_cells. Values outside are clamped. */
  uint32_t causal; /* 1: query j of n sees the first length - (n - 1 - j) cells; 0: every query sees all */

  const int32_t*
      page_table; /* [n_streams, page_table_stride]: numbers of the pages that hold each stream's cells; NULL: page p is p */
  uint32_t page_table_stride; /* entries */

  const void* k_pages; /* page p of head h of stream s: k_pages + s * k_stream_stride + h * k_head_stride + p * k_page_stride */
  size_t k_page_stride, k_head_stride, k_stream_stride; /* with a page table k_stream_stride is usually 0: one pool */
  const void* v_pages;
  size_t v_page_stride, v_head_stride, v_stream_stride;

  kvt_cuda_type q_type;
  const void* q; /* [n_streams, n_queries, n_kv_heads * n_group, head_dim_k], head_dim contiguous */
  size_t q_query_stride, q_head_stride, q_stream_stride;

  /* Cells that a mask removes may hold anything with code pages; with f16 they must hold finite numbers. Cells at and beyond a
   * stream's length are never looked at. */
  const uint16_t*
      mask; /* fp16 [n_streams, n_heads, n_queries, max_cells], cells contiguous; strides of 0 broadcast; NULL = none */
  size_t mask_query_stride, mask_head_stride, mask_stream_stride;
  const float* slopes; /* [n_heads] factors of the mask (ALiBi); NULL = 1 */
  const float* sinks;  /* [n_heads]; NULL = none */

  float scale;         /* >= 0 */
  float logit_softcap; /* 0 = none */

  kvt_cuda_type out_type;
  void* out; /* [n_streams, n_queries, n_heads, head_dim_v], head_dim contiguous; not aliased with any input */
  size_t out_query_stride, out_head_stride, out_stream_stride;

  /* Conditioned keys, as in kvt_attention: NULL = none (ones, zeros); not for f16. A run's mean goes to the scores of its coded cells; exact
   * rows are raw. Cells are those of a stream, with a page table too. */
  const float* key_scale; /* [n_kv_heads, head_dim_k] */
  size_t key_scale_head_stride;
  const int8_t* key_mean; /* as in kvt_cuda_encode_args, from the first stream of this call on */
  size_t key_mean_head_stride, key_mean_stream_stride;
  const float* key_mean_unit;
  size_t key_mean_unit_head_stride, key_mean_unit_stream_stride;
  uint32_t mean_cells;

  /* Host, both or neither is NULL: exact rows of the two tensors, their streams beginning with the first one of this call. They have
   * equal n_first and capacity. Without a step the first rows are attended in place of their codes, and the ring is not
   * looked at. Not for f16. */
  const kvt_cuda_exact_rows *exact_k, *exact_v;

  /* A prepared step, device memory, or NULL: it has the mask, and the exact cells of each query. Then mask and lengths are NULL,
   * causal is 0, and the step was prepared with these n_streams and n_queries, n_cells = max_cells, and n_first,
   * capacity and window as here (0 without exact rows). Not for f16. */
  const void* step;
  uint32_t recent_window;
} kvt_cuda_attention;

/* Bytes of device memory that kvt_cuda_attend needs for arguments of these shapes on the current device; 0 on invalid
 * arguments. The pointers are not looked at. It grows with n_streams, heads, queries and head_dim_v, not with max_cells. */
KVT_API size_t kvt_cuda_attend_workspace_bytes(const kvt_cuda_attention* args);

/* Two launches: the pages, cut in equal shares between all multiprocessors, then the merge of the shares.
 * workspace: 256-byte aligned, used by no other call at the same time; contents do not matter before and after.
 * Equal arguments on one device give equal results; the cut depends on the number of multiprocessors and on all lengths.
 * Returns KVT_OK (launched), KVT_ERROR_INVALID_ARGUMENT, _UNKNOWN_CODEC, _HEAD_DIM, _DST_TOO_SMALL (workspace), _CUDA. */
KVT_API kvt_status kvt_cuda_attend(const kvt_cuda_attention* args, void* workspace, size_t workspace_bytes,
                                   kvt_cuda_stream stream);

#ifdef __cplusplus
}
#endif

#endif /* KVTURBO_CUDA_H */
