// What the CUDA tests share: skipping without a GPU, and device memory.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <kvturbo/kvturbo_cuda.h>

#include <cstring>
#include <vector>

#include "test_support.h"

namespace kvt_test {

inline constexpr kvt_codec_id kCodeCodecs[] = {KVT_CODEC_HYBRID, KVT_CODEC_SCALAR43, KVT_CODEC_K4V3, KVT_CODEC_K3V3,
                                               KVT_CODEC_K3V2,   KVT_CODEC_K2V2,     KVT_CODEC_K8V4, KVT_CODEC_K8V3};
inline constexpr kvt_codec_id kCudaCodecs[] = {KVT_CODEC_F16, KVT_CODEC_HYBRID, KVT_CODEC_SCALAR43, KVT_CODEC_K4V3, KVT_CODEC_K3V3,
                                               KVT_CODEC_K3V2, KVT_CODEC_K2V2, KVT_CODEC_K8V4, KVT_CODEC_K8V3};

// ctest looks for the message (cuda_tests.cmake).
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    const kvt_status status = kvt_cuda_device_status();
    if (status != KVT_OK) GTEST_SKIP() << "no usable GPU here: " << kvt_status_string(status);
  }
};

#define KVT_CUDA_OK(call) ASSERT_EQ(call, cudaSuccess) << cudaGetErrorString(cudaGetLastError())

inline void expect_finished() {
  const cudaError_t error = cudaDeviceSynchronize();
  ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
}

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t n) : n_(n) {
    EXPECT_EQ(cudaMalloc(&data_, std::max<size_t>(1, n) * sizeof(T)), cudaSuccess)
        << "device memory for " << n * sizeof(T) << " bytes";
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) { set(host); }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* get() const { return data_; }
  void set(const std::vector<T>& host) {
    EXPECT_EQ(host.size(), n_);
    EXPECT_EQ(cudaMemcpy(data_, host.data(), n_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  void fill_bytes(int byte) { EXPECT_EQ(cudaMemset(data_, byte, n_ * sizeof(T)), cudaSuccess); }
  std::vector<T> host() const {
    std::vector<T> host(n_);
    EXPECT_EQ(cudaMemcpy(host.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t n_;
};

}  // namespace kvt_test
