#include "cuda/attend_codes.cuh"

namespace kvt::cuda {

const AttendKernels kAttendK2v2 = make_attend_kernels<TrellisCodes<2, 2>>();

}  // namespace kvt::cuda
