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

#define KVT_CUDA_PAGE_ALIGNMENT 16 /* of page addresses and of all page strides, bytes */
#define KVT_CUDA_MAX_GROUP 16      /* query heads for each kv head */
#define KVT_CUDA_MAX_QUERIES 8     /* query tokens for each stream: decode and drafts */

/* KVT_OK if the current device can run the kernels of this build; KVT_ERROR_CUDA_DEVICE if its compute capability is too low or
 * there is none, KVT_ERROR_CUDA if the driver does not answer. */
KVT_API kvt_status kvt_cuda_device_status(void);

/* ---- encode ----------------------------------------------------------------------------------------------------- */

/* Writes row i of every kv head into cell cells[i]: page cells[i] / KVT_PAGE_TOKENS, slot cells[i] % KVT_PAGE_TOKENS. With a
 * page table the caller resolves it: cells then number the pool's cells, page * KVT_PAGE_TOKENS + slot. */
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

  const int64_t*
      cells; /* device [n_rows]; negative: the row is skipped. The others of one call must differ from one another. */

  void* pages; /* device; page p of head h at pages + p * page_stride + h * head_stride bytes */
  size_t page_stride, head_stride;

  /* Device, may be NULL: incremented by one for each row of a head that kvt_encode would refuse (NaN, infinity, beyond fp16 for
   * the f16 codec). Such a row is stored as engines store it: NaN norm and codes 0, or for f16 the value itself. */
  uint32_t* n_refused;
} kvt_cuda_encode_args;

/* Other cells keep their contents. Calls that write distinct cells of one page may run at the same time.
 * Returns KVT_OK (launched), KVT_ERROR_INVALID_ARGUMENT, _UNKNOWN_CODEC (also for codecs other than f16, hybrid, scalar43 and k4v3:
 * they have no GPU kernels yet), _HEAD_DIM, or _CUDA (a launch failed: cudaGetLastError says why). */
KVT_API kvt_status kvt_cuda_encode(const kvt_cuda_encode_args* args, kvt_cuda_stream stream);

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

  const float* key_scale; /* [n_kv_heads, head_dim_k], conditioned keys as in kvt_attention; NULL = none. Not for f16. */
  size_t key_scale_head_stride;

  /* Exact rows: cells 0 .. n_exact - 1 are attended in fp16 instead of by their codes. Keys are conditioned as the coded ones are (in
   * kvt_attention they are raw). Not for f16. The newest cells (kvt_attention's n_recent) are not treated yet. */
  uint32_t n_exact;
  const uint16_t* exact_k; /* fp16 [n_streams, n_kv_heads, n_exact, head_dim_k], rows contiguous */
  size_t exact_k_head_stride, exact_k_stream_stride;
  const uint16_t* exact_v; /* fp16 [.., head_dim_v] */
  size_t exact_v_head_stride, exact_v_stream_stride;
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
