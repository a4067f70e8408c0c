#include "kvturbo/kvturbo.h"

extern "C" const char* kvt_status_string(kvt_status status) {
  switch (status) {
    case KVT_OK: return "ok";
    case KVT_ERROR_INVALID_ARGUMENT: return "invalid argument: a null pointer, a zero count, a stride too small or a wrong struct_size";
    case KVT_ERROR_UNKNOWN_CODEC: return "unknown codec: use f16, hybrid, scalar43, k4v3, k3v3, k3v2, k2v2, k8v4 or k8v3";
    case KVT_ERROR_HEAD_DIM: return "unsupported head dim: use 64, 80, 96, 112, 128, 192 or 256";
    case KVT_ERROR_CELL_RANGE: return "a cell index is negative";
    case KVT_ERROR_NOT_FINITE: return "a row to encode holds NaN or infinity";
    case KVT_ERROR_DST_TOO_SMALL: return "the destination is too small";
    case KVT_ERROR_OVERFLOW: return "a size does not fit in memory";
    case KVT_ERROR_BAD_MAGIC: return "not a kvturbo cache: the header does not begin with KVTC";
    case KVT_ERROR_BAD_VERSION: return "this page format version cannot be read by this library";
    case KVT_ERROR_BAD_FIELD: return "a header field is out of range or a reserved field is not zero";
    case KVT_ERROR_CORRUPT_PAGE: return "a page is corrupt: a norm is negative or not finite, or a reserved bit is set";
    case KVT_ERROR_TRUNCATED: return "the bytes end too early";
    case KVT_ERROR_NO_MEMORY: return "out of memory";
    case KVT_ERROR_UNSUPPORTED_ISA: return "KVTURBO_ISA names kernels that this machine or build lacks: unset it, or use scalar";
    case KVT_ERROR_CUDA: return "a CUDA call failed: cudaGetLastError has the reason";
    case KVT_ERROR_CUDA_DEVICE: return "no GPU of compute capability 8.0 or later: use the CPU functions";
  }
  return "unknown status";
}
