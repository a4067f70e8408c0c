#include "cuda/attend_codes.cuh"

namespace kvt::cuda {

const AttendKernels kAttendK8v4 = make_attend_kernels<TrellisCodes<8, 4>>();

}  // namespace kvt::cuda
