#include "cuda/attend_codes.cuh"

namespace kvt::cuda {

const AttendKernels kAttendHybrid = make_attend_kernels<HybridCodes>();

}  // namespace kvt::cuda
