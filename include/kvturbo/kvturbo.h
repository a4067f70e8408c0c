/* kvturbo: compressed KV cache for language-model inference. C API.
 *
 * What: keys and values are compressed to 2 to 8 bits as they are written, and attention runs straight on the codes
 * (docs/format.md defines the bytes, docs/algorithm.md the maths).
 *
 * Three ways to use it:
 *   1. bytes only:  kvt_encode, kvt_decode               (storage, transport, other engines' kernels)
 *   2. attention:   kvt_attend                           (one call, one thread)
 *   3. in a pool:   kvt_attend_thread                    (called by each of your threads; we start none)
 *
 * A cache is memory of the caller: an array of pages for each (sequence or stream, kv head), one array for keys and one
 * for values. A page holds KVT_PAGE_TOKENS cells. All functions are re-entrant; nothing is allocated but by
 * kvt_codec_create. The library never prints, exits or aborts.
 *
 * Stable: every declaration here, the numbers of the enums, and the page format by its version (KVT_FORMAT_VERSION).
 * Structures begin with struct_size = sizeof(the structure) and may grow at their end. */
#ifndef KVTURBO_H
#define KVTURBO_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(KVT_SHARED)
#  ifdef KVT_BUILD
#    define KVT_API __declspec(dllexport)
#  else
#    define KVT_API __declspec(dllimport)
#  endif
#elif defined(__GNUC__)
#  define KVT_API __attribute__((visibility("default")))
#else
#  define KVT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- version ---------------------------------------------------------------------------------------------------- */

#define KVT_VERSION_MAJOR 0
#define KVT_VERSION_MINOR 1
#define KVT_VERSION_PATCH 0

#define KVT_FORMAT_VERSION 1 /* docs/format.md */

/* "0.1.0": the version of the library that is loaded. Static storage. */
KVT_API const char* kvt_version(void);

/* ---- constants -------------------------------------------------------------------------------------------------- */

#define KVT_PAGE_TOKENS 64    /* cells of a page */
#define KVT_PAGE_ALIGNMENT 64 /* recommended alignment of a page, bytes; any alignment is correct */
#define KVT_HEADER_BYTES 64   /* size of a cache header, format.md section 6 */
#define KVT_MAX_HEAD_DIM 256
#define KVT_MAX_EXACT 64  /* first cells that are kept exact, kvt_attention */
#define KVT_MAX_RECENT 64 /* newest cells that a query attends exactly, kvt_attention */

/* ---- status ----------------------------------------------------------------------------------------------------- */

typedef enum kvt_status {
  KVT_OK = 0,

  KVT_ERROR_INVALID_ARGUMENT = 10, /* null pointer, zero count, wrong struct_size, thread index out of range */
  KVT_ERROR_UNKNOWN_CODEC = 11,
  KVT_ERROR_HEAD_DIM = 12, /* not one of 64, 80, 96, 112, 128, 192, 256 */
  KVT_ERROR_CELL_RANGE = 13, /* a cell index below 0 */
  KVT_ERROR_NOT_FINITE = 14, /* rows to encode hold NaN or infinity, or values beyond what the codec can store */
  KVT_ERROR_DST_TOO_SMALL = 15,
  KVT_ERROR_OVERFLOW = 16, /* a size does not fit size_t */

  KVT_ERROR_BAD_MAGIC = 20, /* foreign bytes: not a header of ours */
  KVT_ERROR_BAD_VERSION = 21, /* a format version that this library cannot read */
  KVT_ERROR_BAD_FIELD = 22, /* a header field out of range, or a reserved field that is not zero */
  KVT_ERROR_CORRUPT_PAGE = 23, /* a norm that is negative or not finite, or a reserved bit that is set */
  KVT_ERROR_TRUNCATED = 24,

  KVT_ERROR_NO_MEMORY = 30,
  KVT_ERROR_UNSUPPORTED_ISA = 31, /* KVTURBO_ISA names a kernel table that this machine or build lacks */

  KVT_ERROR_CUDA = 40, /* a CUDA call failed; cudaGetLastError has the reason (kvturbo_cuda.h) */
  KVT_ERROR_CUDA_DEVICE = 41 /* no GPU, or one that the kernels of this build do not run on */
} kvt_status;

/* One line in English for people; static storage; never NULL. */
KVT_API const char* kvt_status_string(kvt_status status);

/* ---- codec ------------------------------------------------------------------------------------------------------ */

/* The numbers are stored in headers (format.md section 2). */
typedef enum kvt_codec_id {
  KVT_CODEC_F16 = 0,      /* 16 bits: pass-through, the yardstick */
  KVT_CODEC_HYBRID = 1,   /* K 3-bit Lloyd-Max + 1-bit QJL sign, V 3-bit Lloyd-Max */
  KVT_CODEC_SCALAR43 = 2, /* K 4-bit Lloyd-Max, V 3-bit Lloyd-Max */
  KVT_CODEC_K4V3 = 3,     /* K 4-bit trellis, V 3-bit trellis: the default of our programs */
  KVT_CODEC_K3V3 = 4,     /* K 3-bit trellis, V 3-bit trellis */
  KVT_CODEC_K3V2 = 5,     /* K 3-bit trellis, V 2-bit trellis */
  KVT_CODEC_K2V2 = 6,     /* K 2-bit trellis, V 2-bit trellis */
  KVT_CODEC_K8V4 = 7,     /* K 8-bit, V 4-bit trellis: for keys that fit no other codec */
  KVT_CODEC_K8V3 = 8,     /* K 8-bit, V 3-bit trellis */

  KVT_CODEC_ID_RESERVED = 0x7FFFFFFF /* no codec: lets the type hold any number in C++ too */
} kvt_codec_id;

typedef enum kvt_side { KVT_KEY = 0, KVT_VALUE = 1 } kvt_side;

/* "hybrid" -> KVT_CODEC_HYBRID. KVT_ERROR_UNKNOWN_CODEC leaves *id unchanged. */
KVT_API kvt_status kvt_codec_from_name(const char* name, kvt_codec_id* id);
/* The name of a codec, static storage; NULL for an unknown id. Ids are dense from 0: count up to NULL to list them. */
KVT_API const char* kvt_codec_name(kvt_codec_id id);

/* A codec for one pair of head dims: tables, page layout and the kernels chosen for this machine. Immutable. */
typedef struct kvt_codec kvt_codec;

/* Creates a codec. head_dim_k and head_dim_v: 64, 80, 96, 112, 128, 192 or 256, and may differ.
 * The kernel table is chosen once per process: the best that CPU and operating system offer, or the one that the
 * environment variable KVTURBO_ISA names (scalar, avx2, avxvnni, avx512, neon).
 * Returns KVT_OK and *codec (free it with kvt_codec_destroy), or KVT_ERROR_UNKNOWN_CODEC, KVT_ERROR_HEAD_DIM,
 * KVT_ERROR_UNSUPPORTED_ISA, KVT_ERROR_NO_MEMORY, and then *codec is unchanged. */
KVT_API kvt_status kvt_codec_create(kvt_codec_id id, uint32_t head_dim_k, uint32_t head_dim_v, kvt_codec** codec);
KVT_API void kvt_codec_destroy(kvt_codec* codec); /* NULL is allowed */

/* The kernel table in use: "scalar", "avx2", ... Static storage. */
KVT_API const char* kvt_codec_isa(const kvt_codec* codec);

/* Bytes of one page (KVT_PAGE_TOKENS cells of one kv head) of that side. A multiple of 16; bytes per token = this / 64.
 * 0 if codec is NULL. */
KVT_API size_t kvt_page_bytes(const kvt_codec* codec, kvt_side side);
/* The same without a codec object; 0 for an unknown codec or head dim. */
KVT_API size_t kvt_page_bytes_for(kvt_codec_id id, kvt_side side, uint32_t head_dim);

/* ---- one-shot functions: rows <-> cells ------------------------------------------------------------------------- */

/* Encodes n_rows vectors of one kv head into cells.
 * src: [n_rows, head_dim] fp32, finite, row i at src + i * src_stride (in floats, >= head_dim).
 * pages: page p at (char*)pages + p * page_stride bytes; cells[i] >= 0 is written in page cells[i] / 64, slot cells[i] % 64.
 * Two rows for one cell: the later one stays. Other cells keep their contents. The caller guarantees that the pages exist.
 * Threads: distinct pages may be written at the same time; two writers of one page must be serialised (a byte of the
 * value planes holds two tokens, format.md 4.2).
 * A norm above 65504 is stored as 65504; a row whose squared norm overflows fp32, or a value beyond 65504 for f16, is refused.
 * Returns KVT_OK; KVT_ERROR_INVALID_ARGUMENT, KVT_ERROR_CELL_RANGE or KVT_ERROR_NOT_FINITE, and then no cell has changed. */
KVT_API kvt_status kvt_encode(const kvt_codec* codec, kvt_side side, const float* src, size_t src_stride, size_t n_rows,
                              const int64_t* cells, void* pages, size_t page_stride);

/* Decodes the cells first .. first + n_cells - 1 of one kv head: dst [n_cells, head_dim] fp32, row stride in floats.
 * Never fails on the contents of a page: any bytes give numbers (norms that are not finite give values that are not finite).
 * Returns KVT_OK or KVT_ERROR_INVALID_ARGUMENT. */
KVT_API kvt_status kvt_decode(const kvt_codec* codec, kvt_side side, const void* pages, size_t page_stride, size_t first,
                              size_t n_cells, float* dst, size_t dst_stride);

/* ---- foreign bytes ---------------------------------------------------------------------------------------------- */

/* Checks n_pages pages that came from outside: KVT_OK, KVT_ERROR_CORRUPT_PAGE or KVT_ERROR_INVALID_ARGUMENT. Reads only. */
KVT_API kvt_status kvt_validate_pages(const kvt_codec* codec, kvt_side side, const void* pages, size_t page_stride,
                                      size_t n_pages);

/* Header of a stored cache (format.md section 6). */
typedef struct kvt_header {
  uint32_t struct_size;
  kvt_codec_id codec;
  uint32_t head_dim_k, head_dim_v;
  uint32_t n_kv_heads;
  uint32_t n_layers;
  uint64_t n_cells; /* cells of one stream of one layer */
  uint64_t model_hash; /* chosen by the caller; 0 = none */
} kvt_header;

/* dst: KVT_HEADER_BYTES. KVT_ERROR_DST_TOO_SMALL, _UNKNOWN_CODEC, _HEAD_DIM, _BAD_FIELD leave dst unchanged. */
KVT_API kvt_status kvt_header_write(const kvt_header* header, void* dst, size_t dst_bytes);
/* Reads and checks a header; header->struct_size must be set. On any error *header is unchanged. */
KVT_API kvt_status kvt_header_read(const void* src, size_t src_bytes, kvt_header* header);

/* ---- attention -------------------------------------------------------------------------------------------------- */

/* softmax(scale * Q K^T + mask) V over compressed pages, grouped-query, for all kv heads and streams at once.
 * All strides are in bytes. Head h of the n_kv_heads * n_group query heads reads kv head h / n_group.
 *
 *   s = scale * <q, k>;  if logit_softcap > 0: s = logit_softcap * tanh(s / logit_softcap)
 *   s += slope[h] * mask   (a mask value of -inf removes the cell, whatever its bytes)
 *   sinks[h], if given, joins the softmax's denominator as one more score without a value
 *   a row whose cells are all removed gives zeros. */
typedef struct kvt_attention {
  uint32_t struct_size;

  uint32_t n_streams; /* independent caches, e.g. sequences; at least 1 */
  uint32_t n_kv_heads;
  uint32_t n_group;   /* query heads for each kv head, 1 to 64 */
  uint32_t n_queries; /* tokens that ask, for each stream */
  uint32_t n_cells;   /* cells to attend, for each stream: 0 .. n_cells - 1; 0 is allowed */

  const void* k_pages; /* page p of head h of stream s: k_pages + s * k_stream_stride + h * k_head_stride + p * k_page_stride */
  size_t k_page_stride, k_head_stride, k_stream_stride;
  const void* v_pages;
  size_t v_page_stride, v_head_stride, v_stream_stride;

  const float* q; /* [n_streams, n_queries, n_heads, head_dim_k] fp32, head_dim contiguous */
  size_t q_query_stride, q_head_stride, q_stream_stride;

  const uint16_t* mask; /* fp16 bits, [n_streams, n_heads, n_queries, n_cells], cells contiguous; strides of 0 broadcast; NULL = none */
  size_t mask_query_stride, mask_head_stride, mask_stream_stride;

  const float* slopes; /* [n_heads] ALiBi slopes; NULL = 1 */
  const float* sinks;  /* [n_heads]; NULL = none */

  float scale;
  float logit_softcap; /* 0 = none */

  float* out; /* [n_streams, n_queries, n_heads, head_dim_v] fp32, head_dim contiguous; not aliased with any input */
  size_t out_query_stride, out_head_stride, out_stream_stride;

  /* Conditioned keys (docs/algorithm.md 6): where keys were encoded as (k - mean) / scale, key_scale and key_mean undo that on the
   * query side. NULL = none (ones, zeros). Not for f16.
   * key_scale: [n_kv_heads, head_dim_k], one scale for all cells.
   * key_mean: [n_streams, n_kv_heads, n_means, head_dim_k], contiguous from n_means on: mean m, of cells m * mean_cells .. , is
   * key_mean * key_mean_unit[n_streams, n_kv_heads, n_means], n_means = n_cells / mean_cells, rounded up. mean_cells: a multiple of
   * KVT_PAGE_TOKENS. Strides in bytes. */
  const float* key_scale;
  size_t key_scale_head_stride;
  const int8_t* key_mean;
  size_t key_mean_head_stride, key_mean_stream_stride;
  const float* key_mean_unit;
  size_t key_mean_unit_head_stride, key_mean_unit_stream_stride;
  uint32_t mean_cells;

  /* Exact rows: some cells are attended in fp16 instead of by their codes. Keys are raw, not conditioned; rows are contiguous.
   * Not for f16, whose pages are exact.
   *
   * The first cells, 0 .. n_exact - 1, n_exact <= KVT_MAX_EXACT; 0 = none.
   * exact_k: fp16 bits [n_streams, n_kv_heads, n_exact, head_dim_k]; exact_v likewise [.., head_dim_v]. */
  uint32_t n_exact;
  const uint16_t* exact_k;
  size_t exact_k_head_stride, exact_k_stream_stride;
  const uint16_t* exact_v;
  size_t exact_v_head_stride, exact_v_stream_stride;

  /* The newest cells: a list of n_recent entries for each stream, oldest first; 0 = none. Entry e is cell recent_cells[e], distinct
   * in its stream, or -1 for no entry. Query i attends exactly the last recent_window (1 .. KVT_MAX_RECENT) of the entries
   * 0 .. min(recent_own + i, n_recent - 1) that it sees: cell >= n_exact, cell < n_cells, mask above -inf. recent_own is the entry of
   * query 0's own token if the queries' tokens are the last entries in their order; otherwise n_recent - 1 serves all.
   * recent_cells: [n_streams, n_recent]; recent_k: fp16 bits [n_streams, n_kv_heads, n_recent, head_dim_k]; recent_v likewise. */
  uint32_t n_recent, recent_window, recent_own;
  const int32_t* recent_cells;
  size_t recent_cells_stream_stride;
  const uint16_t* recent_k;
  size_t recent_k_head_stride, recent_k_stream_stride;
  const uint16_t* recent_v;
  size_t recent_v_head_stride, recent_v_stream_stride;
  /* The first recent_pinned (at most KVT_MAX_EXACT) entries are attended exactly by every query that sees them, and count for no window. */
  uint32_t recent_pinned;
} kvt_attention;

/* Workspace for n_threads threads. 0 on invalid arguments. */
KVT_API size_t kvt_attend_workspace_bytes(const kvt_codec* codec, const kvt_attention* attention, uint32_t n_threads);

/* One thread's share. Call it from n_threads threads with thread = 0 .. n_threads - 1 and the same arguments; out is complete
 * when all have returned. They may run one after another.
 * workspace: at least kvt_attend_workspace_bytes, 64-byte aligned, shared by the threads of one call and by no other call at
 * that time. Zero it once when you allocate it: it begins with counters that each call leaves at zero.
 * The result does not depend on timing; it depends on n_threads within rounding (docs/algorithm.md).
 * Returns KVT_OK or KVT_ERROR_INVALID_ARGUMENT (then out is untouched by this thread). */
KVT_API kvt_status kvt_attend_thread(const kvt_codec* codec, const kvt_attention* attention, void* workspace,
                                     uint32_t thread, uint32_t n_threads);

/* The whole attention on the calling thread, in a workspace of its own: the simple way.
 * Returns as above, or KVT_ERROR_NO_MEMORY. */
KVT_API kvt_status kvt_attend(const kvt_codec* codec, const kvt_attention* attention);

#ifdef __cplusplus
}
#endif

#endif /* KVTURBO_H */
