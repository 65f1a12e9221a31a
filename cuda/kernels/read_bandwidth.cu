#include "cuda/kernels/read_bandwidth.h"

#include <algorithm>
#include <array>

#include "cuda/kernels/ptx.cuh"

namespace tidal::cuda {
namespace {

constexpr int32_t kNumThreads = 256;
constexpr int32_t kBlocksPerMultiprocessor = 6;  // what every architecture has room for
constexpr int32_t kLoadsInFlight = 4;            // of 16 bytes a thread: 96 KiB a multiprocessor
constexpr size_t kNumRuns = 15;

__global__ void __launch_bounds__(kNumThreads, kBlocksPerMultiprocessor)
    ReadKernel(const uint4* words, int64_t size, float* sink) {
  uint32_t mixed = 0;
  const int64_t stride = int64_t{gridDim.x} * kNumThreads;
  int64_t i = int64_t{blockIdx.x} * kNumThreads + threadIdx.x;
  for (; i + (kLoadsInFlight - 1) * stride < size; i += kLoadsInFlight * stride) {
    uint4 loaded[kLoadsInFlight];
#pragma unroll
    for (int k = 0; k < kLoadsInFlight; ++k) loaded[k] = __ldcs(words + i + k * stride);
#pragma unroll
    for (int k = 0; k < kLoadsInFlight; ++k) {
      mixed ^= loaded[k].x ^ loaded[k].y ^ loaded[k].z ^ loaded[k].w;
    }
  }
  for (; i < size; i += stride) mixed ^= words[i].x;
  // Practically never, and not known to the compiler.
  if (mixed == 0x9E3779B9u) *sink = static_cast<float>(mixed);
}

// An event that is destroyed with its owner.
struct TimedEvent {
  ~TimedEvent() {
    if (event != nullptr) cudaEventDestroy(event);
  }
  cudaEvent_t event = nullptr;
};

}  // namespace

cudaError_t MeasureReadBandwidth(const void* memory, int64_t size_bytes,
                                 int32_t num_multiprocessors, cudaStream_t stream, float* sink,
                                 double* bytes_a_second) {
  const int64_t size = size_bytes / static_cast<int64_t>(sizeof(uint4));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<uint32_t>(num_multiprocessors * kBlocksPerMultiprocessor));
  config.blockDim = dim3(kNumThreads);
  config.stream = stream;
  TimedEvent begin;
  TimedEvent end;
  std::array<double, kNumRuns> rates = {};
  for (cudaError_t error : {cudaEventCreate(&begin.event), cudaEventCreate(&end.event)}) {
    if (error != cudaSuccess) return error;
  }
  for (double& rate : rates) {
    float milliseconds = 0.0f;
    cudaError_t error = cudaEventRecord(begin.event, stream);
    if (error == cudaSuccess) {
      error =
          cudaLaunchKernelEx(&config, ReadKernel, static_cast<const uint4*>(memory), size, sink);
    }
    if (error == cudaSuccess) error = cudaEventRecord(end.event, stream);
    if (error == cudaSuccess) error = cudaEventSynchronize(end.event);
    if (error == cudaSuccess) error = cudaEventElapsedTime(&milliseconds, begin.event, end.event);
    if (error != cudaSuccess) return error;
    rate = static_cast<double>(size) * sizeof(uint4) / (1e-3 * static_cast<double>(milliseconds));
  }
  std::sort(rates.begin(), rates.end());
  *bytes_a_second = rates[kNumRuns / 2];
  return cudaSuccess;
}

}  // namespace tidal::cuda
