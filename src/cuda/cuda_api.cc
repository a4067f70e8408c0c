// The C API on CUDA: checks, then launches.
#include "cuda/cuda_attend.h"
#include "cuda/cuda_encode.h"
#include "cuda/cuda_step.h"

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

// Their two sides are encoded by different kernels.
bool has_uniform_keys(kvt_codec_id codec) { return codec == KVT_CODEC_K8V4 || codec == KVT_CODEC_K8V3; }

// Null is none. n_streams: that a call reads from the first one on.
bool is_valid_exact(const kvt_cuda_exact_rows* e, uint32_t n_streams) {
  if (e == nullptr) return true;
  if (e->struct_size != sizeof *e || e->n_streams < n_streams || e->n_first > KVT_MAX_EXACT || e->capacity > KVT_CUDA_MAX_RING)
    return false;
  for (const size_t stride : {e->first_head_stride, e->first_stream_stride, e->ring_head_stride, e->ring_stream_stride}) {
    if (!is_page_stride(stride)) return false;
  }
  if (e->n_first > 0 && !is_page_address(e->first)) return false;
  return e->capacity == 0 || (is_page_address(e->ring) && e->ring_cells != nullptr && e->ring_next != nullptr);
}

// Conditioning is for the codes of keys. scale: or its reciprocal.
template <class Args>
bool is_valid_conditioning(kvt_codec_id codec, kvt_side side, const float* scale, const Args& a) {
  const bool has_means = a.key_mean != nullptr;
  if (has_means != (a.key_mean_unit != nullptr)) return false;
  if (!has_means && scale == nullptr) return true;
  if (codec == KVT_CODEC_F16 || side != KVT_KEY) return false;
  return !has_means || (is_page_address(a.key_mean) && is_page_stride(a.key_mean_head_stride) && is_page_stride(a.key_mean_stream_stride) &&
                        a.mean_cells > 0 && a.mean_cells % KVT_PAGE_TOKENS == 0 && a.mean_cells <= INT32_MAX);
}

bool is_valid_step(const kvt_cuda_step_args* a) {
  if (a == nullptr || a->struct_size != sizeof *a || a->n_streams == 0 || a->n_streams > 65535) return false;
  if (a->n_queries == 0 || a->n_queries > KVT_CUDA_MAX_QUERIES || a->n_cells > INT32_MAX - KVT_PAGE_TOKENS) return false;
  return a->n_first <= KVT_MAX_EXACT && a->capacity <= KVT_CUDA_MAX_RING && a->window <= KVT_MAX_RECENT && a->window <= a->capacity;
}

kvt_status check_attention(const kvt_cuda_attention* a) {
  if (a == nullptr || a->struct_size != sizeof(kvt_cuda_attention)) return KVT_ERROR_INVALID_ARGUMENT;
  if (!kvt::is_known_codec(a->codec)) return KVT_ERROR_UNKNOWN_CODEC;
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
  if (a.codec == KVT_CODEC_F16 && (a.exact_k != nullptr || a.step != nullptr)) return false;
  if (!is_valid_conditioning(a.codec, KVT_KEY, a.key_scale, a)) return false;
  if (!is_valid_exact(a.exact_k, a.n_streams) || !is_valid_exact(a.exact_v, a.n_streams)) return false;
  if ((a.exact_k == nullptr) != (a.exact_v == nullptr)) return false;
  if (a.exact_k != nullptr && (a.exact_k->n_first != a.exact_v->n_first || a.exact_k->capacity != a.exact_v->capacity)) return false;
  if (a.step == nullptr) return a.recent_window == 0;
  const uint32_t capacity = a.exact_k == nullptr ? 0 : a.exact_k->capacity;
  return a.mask == nullptr && a.lengths == nullptr && a.causal == 0 && reinterpret_cast<uintptr_t>(a.step) % 256 == 0 &&
         a.recent_window <= KVT_MAX_RECENT && a.recent_window <= capacity;
}

const AttendKernels& kernels_of(kvt_codec_id codec) {
  switch (codec) {
    case KVT_CODEC_F16:
      return kvt::cuda::kAttendHalves;
    case KVT_CODEC_HYBRID:
      return kvt::cuda::kAttendHybrid;
    case KVT_CODEC_SCALAR43:
      return kvt::cuda::kAttendScalar43;
    case KVT_CODEC_K3V3:
      return kvt::cuda::kAttendK3v3;
    case KVT_CODEC_K3V2:
      return kvt::cuda::kAttendK3v2;
    case KVT_CODEC_K2V2:
      return kvt::cuda::kAttendK2v2;
    case KVT_CODEC_K8V4:
      return kvt::cuda::kAttendK8v4;
    case KVT_CODEC_K8V3:
      return kvt::cuda::kAttendK8v3;
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

// Checks arguments and makes a call of them.
kvt_status make_encode_call(const kvt_cuda_encode_args* a, kvt::cuda::EncodeCall* made) {
  if (a == nullptr || a->struct_size != sizeof *a || (a->side != KVT_KEY && a->side != KVT_VALUE))
    return KVT_ERROR_INVALID_ARGUMENT;
  if (!kvt::is_known_codec(a->codec)) return KVT_ERROR_UNKNOWN_CODEC;
  if (!kvt::is_supported_head_dim(a->head_dim)) return KVT_ERROR_HEAD_DIM;
  if (a->n_rows == 0) return KVT_OK;
  if (a->n_kv_heads == 0 || a->n_kv_heads > 65534 || a->src == nullptr || !is_type(a->src_type) || a->cells == nullptr ||
      (a->cells_type != KVT_CUDA_I64 && a->cells_type != KVT_CUDA_I32) || a->cells_per_stream < 0 || !is_page_address(a->pages) ||
      !is_page_stride(a->page_stride) || !is_page_stride(a->head_stride) || !is_page_stride(a->stream_stride)) {
    return KVT_ERROR_INVALID_ARGUMENT;
  }
  if (!is_valid_conditioning(a->codec, a->side, a->key_inverse_scale, *a) || (a->key_mean == nullptr) != (a->key_inverse_scale == nullptr))
    return KVT_ERROR_INVALID_ARGUMENT;
  if (a->exact != nullptr && (a->codec == KVT_CODEC_F16 || !is_valid_exact(a->exact, 1) ||
                              (a->unchanged != nullptr && !a->exact_in_place) || a->n_rows > INT32_MAX)) {
    return KVT_ERROR_INVALID_ARGUMENT;
  }
  const kvt::SideLayout layout = kvt::make_side_layout(a->codec, a->side, a->head_dim);
  if (a->page_stride < layout.page_bytes) return KVT_ERROR_INVALID_ARGUMENT;
  kvt::cuda::EncodeCall& call = *made = kvt::cuda::make_encode_call(layout);
  call.src = static_cast<const char*>(a->src);
  call.src_row_stride = a->src_row_stride;
  call.src_head_stride = a->src_head_stride;
  call.src_type = a->src_type;
  call.unchanged = static_cast<const char*>(a->unchanged);
  call.cells = a->cells;
  call.cells_type = a->cells_type;
  call.cell_offset = a->cell_offset;
  call.cells_per_stream = a->cells_per_stream;
  call.stream_stride = a->stream_stride;
  call.round_to_half = a->round_to_half != 0;
  call.key_inverse_scale = a->key_inverse_scale;
  call.key_scale_head_stride = a->key_scale_head_stride;
  call.means = kvt::cuda::make_key_means(*a);
  call.exact_in_place = a->exact_in_place != 0;
  if (a->exact != nullptr) call.exact = *a->exact;
  call.pages = static_cast<char*>(a->pages);
  call.page_stride = a->page_stride;
  call.head_stride = a->head_stride;
  call.n_refused = a->n_refused;
  call.n_rows = a->n_rows;
  call.n_kv_heads = a->n_kv_heads;
  return KVT_OK;
}

// Rows: at least one.
void launch_encode(kvt_codec_id codec, kvt::cuda::EncodePair& pair, cudaStream_t stream) {
  const bool overlap = kvt::cuda::can_overlap();
  switch (codec) {
    case KVT_CODEC_F16:
      return kvt::cuda::launch_encode_halves(pair.any(), stream);
    case KVT_CODEC_HYBRID:
      return kvt::cuda::launch_encode_hybrid(pair, stream, overlap);
    case KVT_CODEC_SCALAR43:
      return kvt::cuda::launch_encode_scalar43(pair, stream, overlap);
    default:
      if (has_uniform_keys(codec) && pair.first_side == KVT_KEY) return kvt::cuda::launch_encode_scalar43(pair, stream, overlap);
      return kvt::cuda::launch_encode_trellis(pair, stream, overlap);
  }
}

}  // namespace

extern "C" {

kvt_status kvt_cuda_device_status(void) { return ask_device(nullptr); }

kvt_status kvt_cuda_encode(const kvt_cuda_encode_args* args, kvt_cuda_stream stream) {
  kvt::cuda::EncodePair pair{};
  pair.n_sides = 1;
  pair.first_side = args != nullptr && args->side == KVT_VALUE;
  const kvt_status made = make_encode_call(args, &pair.side[pair.first_side]);
  if (made != KVT_OK || args->n_rows == 0) return made;
  launch_encode(args->codec, pair, stream);
  return cudaPeekAtLastError() == cudaSuccess ? KVT_OK : KVT_ERROR_CUDA;
}

kvt_status kvt_cuda_append(const kvt_cuda_encode_args* keys, const kvt_cuda_encode_args* values, kvt_cuda_stream stream) {
  kvt::cuda::EncodePair pair{};
  pair.n_sides = 2;
  for (const kvt_cuda_encode_args* args : {keys, values}) {
    const kvt_status made = make_encode_call(args, &pair.side[args == values]);
    if (made != KVT_OK) return made;
  }
  if (keys->side != KVT_KEY || values->side != KVT_VALUE || keys->codec != values->codec || keys->n_rows != values->n_rows ||
      keys->n_kv_heads != values->n_kv_heads) {
    return KVT_ERROR_INVALID_ARGUMENT;
  }
  if (keys->n_rows == 0) return KVT_OK;
  if (keys->codec == KVT_CODEC_F16 || has_uniform_keys(keys->codec) || !kvt::cuda::is_encode_pair(keys->head_dim, values->head_dim)) {
    for (pair.n_sides = 1, pair.first_side = 0; pair.first_side < 2; ++pair.first_side) launch_encode(keys->codec, pair, stream);
  } else {
    launch_encode(keys->codec, pair, stream);
  }
  return cudaPeekAtLastError() == cudaSuccess ? KVT_OK : KVT_ERROR_CUDA;
}

kvt_status kvt_cuda_begin_means(const kvt_cuda_encode_args* keys, const float* key_scale, kvt_cuda_stream stream) {
  kvt::cuda::EncodeCall call{};
  const kvt_status made = make_encode_call(keys, &call);
  if (made != KVT_OK || keys->n_rows == 0) return made;
  if (keys->key_mean == nullptr || key_scale == nullptr) return KVT_ERROR_INVALID_ARGUMENT;
  kvt::cuda::launch_begin_means(kvt::make_side_layout(keys->codec, KVT_KEY, keys->head_dim), call, key_scale, *keys, stream,
                                kvt::cuda::can_overlap());
  return cudaPeekAtLastError() == cudaSuccess ? KVT_OK : KVT_ERROR_CUDA;
}

kvt_status kvt_cuda_decode(const kvt_cuda_decode_args* a, kvt_cuda_stream stream) {
  if (a == nullptr || a->struct_size != sizeof *a || (a->side != KVT_KEY && a->side != KVT_VALUE))
    return KVT_ERROR_INVALID_ARGUMENT;
  if (!kvt::is_known_codec(a->codec)) return KVT_ERROR_UNKNOWN_CODEC;
  if (!kvt::is_supported_head_dim(a->head_dim)) return KVT_ERROR_HEAD_DIM;
  if (a->n_cells == 0) return KVT_OK;
  if (a->n_streams == 0 || a->n_streams > 65535 || a->n_kv_heads == 0 || a->n_kv_heads > 65535 || !is_page_address(a->pages) ||
      !is_page_address(a->dst) || !is_type(a->dst_type) || uint64_t{a->first_cell} + a->n_cells > INT32_MAX) {
    return KVT_ERROR_INVALID_ARGUMENT;
  }
  for (const size_t stride :
       {a->page_stride, a->head_stride, a->stream_stride, a->dst_row_stride, a->dst_head_stride, a->dst_stream_stride}) {
    if (!is_page_stride(stride)) return KVT_ERROR_INVALID_ARGUMENT;
  }
  const kvt::SideLayout layout = kvt::make_side_layout(a->codec, a->side, a->head_dim);
  if (a->page_stride < layout.page_bytes || !is_valid_conditioning(a->codec, a->side, a->key_scale, *a) ||
      (a->key_mean == nullptr) != (a->key_scale == nullptr) ||
      !is_valid_exact(a->exact, a->n_streams) || (a->exact != nullptr && a->codec == KVT_CODEC_F16)) {
    return KVT_ERROR_INVALID_ARGUMENT;
  }
  kvt::cuda::launch_decode(layout, *a, stream);
  return cudaPeekAtLastError() == cudaSuccess ? KVT_OK : KVT_ERROR_CUDA;
}

size_t kvt_cuda_step_bytes(const kvt_cuda_step_args* args) {
  return is_valid_step(args) ? kvt::cuda::step_shape(*args).bytes() : 0;
}

kvt_status kvt_cuda_prepare_step(const kvt_cuda_step_args* args, void* step, size_t step_bytes, kvt_cuda_stream stream) {
  if (!is_valid_step(args) || step == nullptr || reinterpret_cast<uintptr_t>(step) % 256 != 0 ||
      (args->capacity > 0 && (args->ring_cells == nullptr || args->ring_next == nullptr))) {
    return KVT_ERROR_INVALID_ARGUMENT;
  }
  if (step_bytes < kvt::cuda::step_shape(*args).bytes()) return KVT_ERROR_DST_TOO_SMALL;
  kvt::cuda::launch_prepare_step(*args, step, stream);
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
  // The merge reads what came before the first launch without waiting for it, so there must be a first launch.
  const bool overlap = kvt::cuda::can_overlap() && args->max_cells > 0;
  if (args->max_cells > 0) kernels.launch(call, plan, stream, overlap);
  kvt::cuda::launch_merge(call, stream, overlap);
  return cudaPeekAtLastError() == cudaSuccess ? KVT_OK : KVT_ERROR_CUDA;
}

}  // extern "C"
