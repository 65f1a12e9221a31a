// Device memory for tests of kernels, and the check that there is a device at all.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#define ASSERT_CUDA_OK(expression) ASSERT_EQ(cudaSuccess, (expression))

namespace tidal::cuda::testing {

inline bool HasDevice() {
  int num_devices = 0;
  return cudaGetDeviceCount(&num_devices) == cudaSuccess && num_devices > 0;
}

// An array in device memory; new ones are poisoned with bytes 0xFF (NaN in every element type).
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) {
    void* memory = nullptr;
    EXPECT_EQ(cudaSuccess, cudaMalloc(&memory, std::max<size_t>(size, 1) * sizeof(T)));
    elements_ = static_cast<T*>(memory);
    Poison();
  }
  explicit DeviceArray(const std::vector<T>& elements) : DeviceArray(elements.size()) {
    Write(elements);
  }
  ~DeviceArray() { cudaFree(elements_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* get() const { return elements_; }
  void Poison() { EXPECT_EQ(cudaSuccess, cudaMemset(elements_, 0xFF, size_ * sizeof(T))); }
  void Write(const std::vector<T>& elements) {
    EXPECT_EQ(cudaSuccess, cudaMemcpy(elements_, elements.data(), elements.size() * sizeof(T),
                                      cudaMemcpyHostToDevice));
  }
  // Waits for what the device has to do.
  std::vector<T> Read() const {
    EXPECT_EQ(cudaSuccess, cudaDeviceSynchronize());
    std::vector<T> elements(size_);
    EXPECT_EQ(cudaSuccess,
              cudaMemcpy(elements.data(), elements_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return elements;
  }

 private:
  size_t size_;
  T* elements_ = nullptr;
};

// A stream of the test's own; none where there is no device, and the test is to be skipped.
class TestStream {
 public:
  TestStream() {
    if (HasDevice()) {
      EXPECT_EQ(cudaSuccess, cudaStreamCreate(&stream_));
    }
  }
  ~TestStream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace tidal::cuda::testing
