#include "cuda/device.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "cuda/status.h"

namespace tidal::cuda {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int32_t kLeastMajor = 8;  // bf16 and cp.async

int64_t AlignUp(int64_t size_bytes) {
  return (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

absl::Status MissingDriver(cudaError_t error) {
  return absl::UnavailableError(absl::StrCat("no usable NVIDIA driver: ", cudaGetErrorString(error),
                                             " (built for CUDA ", CUDART_VERSION / 1000, ".",
                                             CUDART_VERSION % 1000 / 10, ")"));
}

}  // namespace

absl::StatusOr<DeviceInfo> OpenDevice(int32_t ordinal) {
  int num_devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&num_devices); error != cudaSuccess) {
    cudaGetLastError();  // it is reported, not left for the next call
    if (error == cudaErrorNoDevice) return absl::UnavailableError("no NVIDIA GPU is visible");
    return MissingDriver(error);
  }
  if (num_devices == 0) return absl::UnavailableError("no NVIDIA GPU is visible");
  if (ordinal < 0 || ordinal >= num_devices) {
    return absl::UnavailableError(
        absl::StrCat("GPU ", ordinal, " is not there: ", num_devices, " are visible"));
  }
  TIDAL_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal));
  cudaDeviceProp properties;
  TIDAL_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, ordinal));
  if (properties.major < kLeastMajor) {
    return absl::FailedPreconditionError(absl::StrCat(properties.name, " has compute capability ",
                                                      properties.major, ".", properties.minor,
                                                      ", at least ", kLeastMajor, ".0 is needed"));
  }
  return DeviceInfo{.ordinal = ordinal,
                    .name = properties.name,
                    .major = properties.major,
                    .minor = properties.minor,
                    .total_bytes = static_cast<int64_t>(properties.totalGlobalMem),
                    .num_multiprocessors = properties.multiProcessorCount};
}

absl::StatusOr<DeviceArena> DeviceArena::Allocate(int64_t size_bytes, int64_t limit_bytes,
                                                  absl::string_view purpose) {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  TIDAL_RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free_bytes, &total_bytes));
  const int64_t available_bytes =
      std::max<int64_t>(0, std::min(limit_bytes, static_cast<int64_t>(free_bytes)));
  const auto does_not_fit = [&] {
    return absl::ResourceExhaustedError(
        absl::StrCat(purpose, " need ", size_bytes, " bytes of GPU memory, ", available_bytes,
                     " are available (", total_bytes, " in all, ", free_bytes, " free)"));
  };
  if (size_bytes > available_bytes) return does_not_fit();
  DeviceArena arena;
  void* memory = nullptr;
  const cudaError_t error =
      cudaMalloc(&memory, static_cast<size_t>(std::max<int64_t>(size_bytes, 1)));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return does_not_fit();
  }
  TIDAL_RETURN_IF_CUDA_ERROR(error);
  arena.memory_.reset(static_cast<char*>(memory));
  arena.size_bytes_ = size_bytes;
  return arena;
}

void* DeviceArena::TakeBytes(int64_t size_bytes) {
  const int64_t offset = used_bytes_;
  used_bytes_ += AlignUp(size_bytes);
  return memory_ == nullptr ? nullptr : memory_.get() + offset;
}

absl::Status AllocatePinned(int64_t size_bytes, void** memory) {
  const cudaError_t error =
      cudaMallocHost(memory, static_cast<size_t>(std::max<int64_t>(size_bytes, 1)));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return absl::ResourceExhaustedError(
        absl::StrCat(size_bytes, " bytes of pinned host memory cannot be had"));
  }
  TIDAL_RETURN_IF_CUDA_ERROR(error);
  return absl::OkStatus();
}

absl::Status Stream::Create() {
  TIDAL_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  return absl::OkStatus();
}

absl::Status Event::Create() {
  TIDAL_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
  return absl::OkStatus();
}

}  // namespace tidal::cuda
