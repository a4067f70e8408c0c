#include "cuda/attend_codes.cuh"

namespace kvt::cuda {

const AttendKernels kAttendK8v3 = make_attend_kernels<TrellisCodes<8, 3>>();

}  // namespace kvt::cuda
