#include "cuda/attend_codes.cuh"

namespace kvt::cuda {

const AttendKernels kAttendK3v2 = make_attend_kernels<TrellisCodes<3, 2>>();

}  // namespace kvt::cuda
