#include "cuda/attend_codes.cuh"

namespace kvt::cuda {

const AttendKernels kAttendK3v3 = make_attend_kernels<TrellisCodes<3, 3>>();

}  // namespace kvt::cuda
