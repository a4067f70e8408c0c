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
  static constexpr int kBarriers = 2 * kStages;

  // stages: kStages * kStageBytes of the page warp, barriers: kBarriers of them. group: its number. n_sharers: warps that read
  // it; the first one is the producer.
  __device__ PageRing(char* stages, uint64_t* barriers, int group, int n_sharers)
      : stages_(stages), barriers_(barriers), group_(group), n_sharers_(n_sharers) {}

#if __CUDA_ARCH__ >= 900
  // Producer; the block must synchronise before anyone waits. Barriers: page arrived, one for each stage; then page read by
  // all.
  __device__ void initialise() {
    if (threadIdx.x % 32 == 0) {
      for (int i = 0; i < kBarriers; ++i) {
        asm volatile("mbarrier.init.shared.b64 [%0],%1;" ::"r"(shared_address(barriers_ + i)),
                     "r"(i < kStages ? 1 : n_sharers_));
      }
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncwarp();
  }
  // Producer, all lanes. valid: there is a page. Waits until the sharers have released the page that it replaces.
  __device__ __forceinline__ void request(bool valid, const char* key, const char* value) {
    const int stage = n_requests_ % kStages;
    if (n_sharers_ > 1 && n_requests_ >= kStages) wait_for(barriers_ + kStages + stage, n_requests_ / kStages - 1);
    if (valid && threadIdx.x % 32 == 0) {
      const uint32_t barrier = shared_address(barriers_ + stage), to = shared_address(stages_ + stage * kStageBytes);
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _,[%0],%1;" ::"r"(barrier), "r"(kStageBytes) : "memory");
      copy(to, key, kKeyBytes, barrier);
      copy(to + kKeyBytes, value, kValueBytes, barrier);
    }
    ++n_requests_;
  }
  // Every sharer: the page at hand.
  __device__ __forceinline__ const char* wait() {
    const int stage = n_released_ % kStages;
    wait_for(barriers_ + stage, n_released_ / kStages);
    return stages_ + stage * kStageBytes;
  }
  // Every sharer, when it has read all it needs of the page at hand.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (n_sharers_ > 1 && threadIdx.x % 32 == 0) {
      asm volatile("mbarrier.arrive.shared.b64 _,[%0];" ::"r"(shared_address(barriers_ + kStages + n_released_ % kStages))
                   : "memory");
    }
    ++n_released_;
  }

 private:
  // The end of a barrier's phase number `phase`.
  __device__ static __forceinline__ void wait_for(uint64_t* barrier, int phase) {
    asm volatile(
        "{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p,[%0],%1;\n@p bra DONE;\nbra "
        "WAIT;\nDONE:\n}" ::"r"(shared_address(barrier)),
        "r"(phase & 1)
        : "memory");
  }
  __device__ static __forceinline__ void copy(uint32_t to, const char* from, int bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0],[%1],%2,[%3];" ::"r"(to), "l"(from),
                 "r"(bytes), "r"(barrier)
                 : "memory");
  }
#else
  __device__ void initialise() {}
  __device__ __forceinline__ void request(bool valid, const char* key, const char* value) {
    if (valid) {
      char* to = stages_ + n_requests_ % kStages * kStageBytes;
      for (int i = threadIdx.x % 32 * 16; i < kStageBytes; i += 512) {
        const char* from = i < kKeyBytes ? key + i : value + (i - kKeyBytes);
        asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(shared_address(to + i)), "l"(from) : "memory");
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    ++n_requests_;
  }
  __device__ __forceinline__ const char* wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
    synchronise();
    return stages_ + n_released_ % kStages * kStageBytes;
  }
  __device__ __forceinline__ void release() {
    synchronise();
    ++n_released_;
  }

 private:
  __device__ __forceinline__ void synchronise() {
    if (n_sharers_ == 1) {
      __syncwarp();
    } else {
      asm volatile("bar.sync %0,%1;" ::"r"(1 + group_), "r"(32 * n_sharers_) : "memory");
    }
  }
#endif

  char* stages_;
  uint64_t* barriers_;
  int group_, n_sharers_;
  int n_requests_ = 0, n_released_ = 0;
};

}  // namespace
}  // namespace kvt::cuda

#endif
