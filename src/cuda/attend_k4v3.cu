#include "cuda/attend_codes.cuh"

namespace kvt::cuda {

const AttendKernels kAttendK4v3 = make_attend_kernels<K4v3Codes>();

}  // namespace kvt::cuda
