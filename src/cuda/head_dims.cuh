// From a head dim to a template argument.
#ifndef KVT_CUDA_HEAD_DIMS_CUH
#define KVT_CUDA_HEAD_DIMS_CUH

#include <cstdint>
#include <type_traits>

namespace kvt::cuda {
namespace {

// launch(std::integral_constant<int, head_dim>)
template <class Launch>
void for_head_dim(uint32_t head_dim, const Launch& launch) {
  switch (head_dim) {
    case 64:
      return launch(std::integral_constant<int, 64>{});
    case 80:
      return launch(std::integral_constant<int, 80>{});
    case 96:
      return launch(std::integral_constant<int, 96>{});
    case 112:
      return launch(std::integral_constant<int, 112>{});
    case 128:
      return launch(std::integral_constant<int, 128>{});
    case 192:
      return launch(std::integral_constant<int, 192>{});
    default:
      return launch(std::integral_constant<int, 256>{});
  }
}

}  // namespace
}  // namespace kvt::cuda

#endif
