// The C API on CUDA: checks, then launches.
#include "cuda/cuda_attend.h"
#include "cuda/cuda_encode.h"

namespace {

using kvt::cuda::AttendKernels;

bool is_type(kvt_cuda_type type) { return type == KVT_CUDA_F32 || type == KVT_CUDA_F16 || type == KVT_CUDA_BF16; }
bool is_page_stride(size_t stride) { return stride % KVT_CUDA_PAGE_ALIGNMENT == 0; }
bool is_page_address(const void* p) { return p != nullptr && reinterpret_cast<uintptr_t>(p) % KVT_CUDA_PAGE_ALIGNMENT == 0; }

// KVT_OK, or what hinders a launch. limits may be null.
kvt_status ask_device(kvt::cuda::DeviceLimits* limits) {
  int n_devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&n_devices);
  if (found == cudaErrorNoDevice || (found == cudaSuccess && n_devices == 0)) return KVT_ERROR_CUDA_DEVICE;
  if (found != cudaSuccess) return KVT_ERROR_CUDA;
  int device = 0, major = 0, shared_bytes = 0, n_multiprocessors = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&n_multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return KVT_ERROR_CUDA;
  }
  if (major < 8) return KVT_ERROR_CUDA_DEVICE;
  if (limits != nullptr) *limits = {n_multiprocessors, shared_bytes};
  return KVT_OK;
}

// The other codecs have no GPU kernels yet.
bool has_kernels(kvt_codec_id codec) {
  return codec == KVT_CODEC_F16 || codec == KVT_CODEC_HYBRID || codec == KVT_CODEC_SCALAR43 || codec == KVT_CODEC_K4V3;
}

kvt_status check_attention(const kvt_cuda_attention* a) {
  if (a == nullptr || a->struct_size != sizeof(kvt_cuda_attention)) return KVT_ERROR_INVALID_ARGUMENT;
  if (!has_kernels(a->codec)) return KVT_ERROR_UNKNOWN_CODEC;
  if (!kvt::cuda::has_attend_kernel(a->head_dim_k, a->head_dim_v)) return KVT_ERROR_HEAD_DIM;
  if (a->n_streams == 0 || a->n_kv_heads == 0 || a->n_group == 0 || a->n_group > KVT_CUDA_MAX_GROUP || a->n_queries == 0 ||
      a->n_queries > KVT_CUDA_MAX_QUERIES || a->max_cells > INT32_MAX - KVT_PAGE_TOKENS) {
    return KVT_ERROR_INVALID_ARGUMENT;
  }
  // Pages and output rows are numbered in 31 bits.
  if (uint64_t{a->n_streams} * a->n_kv_heads > INT32_MAX / (KVT_CUDA_MAX_GROUP * KVT_CUDA_MAX_QUERIES))
    return KVT_ERROR_INVALID_ARGUMENT;
  if (kvt::cuda::count_list_pages(*a) > INT32_MAX) return KVT_ERROR_INVALID_ARGUMENT;
  return KVT_OK;
}

bool has_valid_memory(const kvt_cuda_attention& a) {
  if (a.q == nullptr || a.out == nullptr || !is_type(a.q_type) || !is_type(a.out_type) || !(a.scale >= 0)) return false;
  if (a.max_cells > 0 && (!is_page_address(a.k_pages) || !is_page_address(a.v_pages))) return false;
  for (const size_t stride :
       {a.k_page_stride, a.k_head_stride, a.k_stream_stride, a.v_page_stride, a.v_head_stride, a.v_stream_stride}) {
    if (!is_page_stride(stride)) return false;
  }
  if (a.page_table != nullptr && a.page_table_stride < (a.max_cells + KVT_PAGE_TOKENS - 1) / KVT_PAGE_TOKENS) return false;
  if (a.codec == KVT_CODEC_F16 && (a.key_scale != nullptr || a.n_exact > 0)) return false;
  return a.n_exact <= KVT_MAX_EXACT && (a.n_exact == 0 || (a.exact_k != nullptr && a.exact_v != nullptr));
}

const AttendKernels& kernels_of(kvt_codec_id codec) {
  switch (codec) {
    case KVT_CODEC_F16:
      return kvt::cuda::kAttendHalves;
    case KVT_CODEC_HYBRID:
      return kvt::cuda::kAttendHybrid;
    case KVT_CODEC_SCALAR43:
      return kvt::cuda::kAttendScalar43;
    default:
      return kvt::cuda::kAttendK4v3;
  }
}

// Rows of partial results: accumulators, then maxima, then sums.
size_t partial_rows(const kvt_cuda_attention& a, const kvt::cuda::AttendPlan& plan) {
  return (size_t{plan.n_blocks} + size_t{a.n_streams} * a.n_kv_heads) * a.n_group * a.n_queries;
}
size_t workspace_bytes_of(const kvt_cuda_attention& a, const kvt::cuda::AttendPlan& plan) {
  return partial_rows(a, plan) * (a.head_dim_v + 2) * sizeof(float);
}

}  // namespace

extern "C" {

kvt_status kvt_cuda_device_status(void) { return ask_device(nullptr); }

kvt_status kvt_cuda_encode(const kvt_cuda_encode_args* a, kvt_cuda_stream stream) {
  if (a == nullptr || a->struct_size != sizeof *a || (a->side != KVT_KEY && a->side != KVT_VALUE))
    return KVT_ERROR_INVALID_ARGUMENT;
  if (!has_kernels(a->codec)) return KVT_ERROR_UNKNOWN_CODEC;
  if (!kvt::is_supported_head_dim(a->head_dim)) return KVT_ERROR_HEAD_DIM;
  if (a->n_rows == 0) return KVT_OK;
  if (a->n_kv_heads == 0 || a->n_kv_heads > 65535 || a->src == nullptr || !is_type(a->src_type) || a->cells == nullptr ||
      !is_page_address(a->pages) || !is_page_stride(a->page_stride) || !is_page_stride(a->head_stride)) {
    return KVT_ERROR_INVALID_ARGUMENT;
  }
  const kvt::SideLayout layout = kvt::make_side_layout(a->codec, a->side, a->head_dim);
  if (a->page_stride < layout.page_bytes) return KVT_ERROR_INVALID_ARGUMENT;
  kvt::cuda::EncodeCall call = kvt::cuda::make_encode_call(layout);
  call.src = static_cast<const char*>(a->src);
  call.src_row_stride = a->src_row_stride;
  call.src_head_stride = a->src_head_stride;
  call.src_type = a->src_type;
  call.cells = a->cells;
  call.pages = static_cast<char*>(a->pages);
  call.page_stride = a->page_stride;
  call.head_stride = a->head_stride;
  call.n_refused = a->n_refused;
  call.n_rows = a->n_rows;
  call.n_kv_heads = a->n_kv_heads;
  if (layout.table == nullptr) {
    kvt::cuda::launch_encode_halves(call, stream);
  } else if (layout.table->trellis) {
    kvt::cuda::launch_encode_trellis(layout, call, stream);
  } else {
    kvt::cuda::launch_encode_scalar(layout, call, stream);
  }
  return cudaPeekAtLastError() == cudaSuccess ? KVT_OK : KVT_ERROR_CUDA;
}

size_t kvt_cuda_attend_workspace_bytes(const kvt_cuda_attention* args) {
  kvt::cuda::DeviceLimits device{};
  if (check_attention(args) != KVT_OK || ask_device(&device) != KVT_OK) return 0;
  return workspace_bytes_of(*args, kernels_of(args->codec).plan(*args, device));
}

kvt_status kvt_cuda_attend(const kvt_cuda_attention* args, void* workspace, size_t workspace_bytes, kvt_cuda_stream stream) {
  const kvt_status checked = check_attention(args);
  if (checked != KVT_OK) return checked;
  if (!has_valid_memory(*args) || workspace == nullptr || reinterpret_cast<uintptr_t>(workspace) % 256 != 0)
    return KVT_ERROR_INVALID_ARGUMENT;
  const kvt::SideLayout key = kvt::make_side_layout(args->codec, KVT_KEY, args->head_dim_k);
  const kvt::SideLayout value = kvt::make_side_layout(args->codec, KVT_VALUE, args->head_dim_v);
  if (args->max_cells > 0 && (args->k_page_stride < key.page_bytes || args->v_page_stride < value.page_bytes))
    return KVT_ERROR_INVALID_ARGUMENT;
  kvt::cuda::DeviceLimits device{};
  const kvt_status found = ask_device(&device);
  if (found != KVT_OK) return found;
  const AttendKernels& kernels = kernels_of(args->codec);
  const kvt::cuda::AttendPlan plan = kernels.plan(*args, device);
  if (workspace_bytes < workspace_bytes_of(*args, plan)) return KVT_ERROR_DST_TOO_SMALL;
  kvt::cuda::AttendCall call = kvt::cuda::make_attend_call(key, value, *args);
  call.n_blocks = plan.n_blocks;
  call.n_row_warps = plan.n_row_warps;
  const size_t n_partials = partial_rows(*args, plan);
  call.partial_acc = static_cast<float*>(workspace);
  call.partial_max = call.partial_acc + n_partials * args->head_dim_v;
  call.partial_sum = call.partial_max + n_partials;
  const bool overlap = kvt::cuda::can_overlap();
  if (args->max_cells > 0) kernels.launch(call, plan, stream, overlap);
  kvt::cuda::launch_merge(call, stream, overlap);
  return cudaPeekAtLastError() == cudaSuccess ? KVT_OK : KVT_ERROR_CUDA;
}

}  // extern "C"
