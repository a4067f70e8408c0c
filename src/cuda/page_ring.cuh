// Pages on their way to shared memory: two stages for each page warp. Compute capability 9.0 copies with the bulk engine, one
// instruction a side; 8.x with cp.async, 16 bytes a lane.
#ifndef KVT_CUDA_PAGE_RING_CUH
#define KVT_CUDA_PAGE_RING_CUH

#include <cstdint>

namespace kvt::cuda {
namespace {

constexpr int kStages = 2;

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

template <int kKeyBytes, int kValueBytes>
class PageRing {
 public:
  static constexpr int kStageBytes = kKeyBytes + kValueBytes;

  // stages: kStages * kStageBytes of the page warp. group: its number. n_sharers: warps that read it; the first one is the
  // producer.
  __device__ PageRing(char* stages, uint64_t* barriers, int group, int n_sharers)
      : stages_(stages), barriers_(barriers), group_(group), n_sharers_(n_sharers) {}

#if __CUDA_ARCH__ >= 900
  // Producer; the block must synchronise before anyone waits.
  __device__ void initialise() {
    if (threadIdx.x % 32 == 0) {
      for (int i = 0; i < kStages; ++i) asm volatile("mbarrier.init.shared.b64 [%0],1;" ::"r"(shared_address(barriers_ + i)));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncwarp();
  }
  // Producer, all lanes. valid: there is a page.
  __device__ __forceinline__ void request(bool valid, const char* key, const char* value) {
    if (valid && threadIdx.x % 32 == 0) {
      const uint32_t barrier = shared_address(barriers_ + next_), to = shared_address(stages_ + next_ * kStageBytes);
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _,[%0],%1;" ::"r"(barrier), "r"(kStageBytes) : "memory");
      copy(to, key, kKeyBytes, barrier);
      copy(to + kKeyBytes, value, kValueBytes, barrier);
    }
    next_ ^= 1;
  }
  // Every sharer: the page at hand.
  __device__ __forceinline__ const char* wait() {
    asm volatile(
        "{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p,[%0],%1;\n@p bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(
            shared_address(barriers_ + now_)),
        "r"(phase_)
        : "memory");
    return stages_ + now_ * kStageBytes;
  }
#else
  __device__ void initialise() {}
  __device__ __forceinline__ void request(bool valid, const char* key, const char* value) {
    if (valid) {
      char* to = stages_ + next_ * kStageBytes;
      for (int i = threadIdx.x % 32 * 16; i < kStageBytes; i += 512) {
        const char* from = i < kKeyBytes ? key + i : value + (i - kKeyBytes);
        asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(shared_address(to + i)), "l"(from) : "memory");
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    next_ ^= 1;
  }
  __device__ __forceinline__ const char* wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
    synchronise();
    return stages_ + now_ * kStageBytes;
  }
#endif
  // Every sharer, when it has read all it needs of the page at hand.
  __device__ __forceinline__ void release() {
    synchronise();
    now_ ^= 1;
    phase_ ^= now_ == 0;
  }

 private:
  __device__ static __forceinline__ void copy(uint32_t to, const char* from, int bytes, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0],[%1],%2,[%3];" ::"r"(to), "l"(from),
                 "r"(bytes), "r"(barrier)
                 : "memory");
#endif
  }
  __device__ __forceinline__ void synchronise() {
    if (n_sharers_ == 1) {
      __syncwarp();
    } else {
      asm volatile("bar.sync %0,%1;" ::"r"(1 + group_), "r"(32 * n_sharers_) : "memory");
    }
  }

  char* stages_;
  uint64_t* barriers_;
  int group_, n_sharers_;
  int next_ = 0, now_ = 0;  // stages
  uint32_t phase_ = 0;
};

}  // namespace
}  // namespace kvt::cuda

#endif
