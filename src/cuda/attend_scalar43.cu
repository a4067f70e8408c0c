#include "cuda/attend_codes.cuh"

namespace kvt::cuda {

const AttendKernels kAttendScalar43 = make_attend_kernels<Scalar43Codes>();

}  // namespace kvt::cuda
