#include "cuda/attend_codes.cuh"

namespace kvt::cuda {

const AttendKernels kAttendK4v3 = make_attend_kernels<TrellisCodes<4, 3>>();

}  // namespace kvt::cuda
