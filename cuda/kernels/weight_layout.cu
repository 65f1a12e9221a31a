#include "cuda/kernels/weight_layout.h"

#include <algorithm>

#include "cuda/kernels/ptx.cuh"

namespace tidal::cuda {
namespace {

constexpr int32_t kNumThreads = 256;
constexpr int64_t kMaxBlocks = 4096;

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchOver(int64_t size, void (*kernel)(Parameters...), cudaStream_t stream,
                       const Arguments&... arguments) {
  if (size == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim =
      dim3(static_cast<uint32_t>(std::min(kMaxBlocks, (size + kNumThreads - 1) / kNumThreads)));
  config.blockDim = dim3(kNumThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Calls visit(i) once for each i below `size`, in one thread of the grid.
template <typename Visit>
__device__ void ForEach(int64_t size, const Visit& visit) {
  const int64_t stride = int64_t{gridDim.x} * kNumThreads;
  for (int64_t i = int64_t{blockIdx.x} * kNumThreads + threadIdx.x; i < size; i += stride) visit(i);
}

template <typename Source, typename Target>
__global__ void __launch_bounds__(kNumThreads)
    ConvertRowsKernel(const Source* source, int32_t first_row, int64_t size, int32_t num_columns,
                      RowMap map, Target* target) {
  ForEach(size, [&](int64_t i) {
    const int32_t row = first_row + static_cast<int32_t>(i / num_columns);
    target[int64_t{map(row)} * num_columns + i % num_columns] =
        static_cast<Target>(static_cast<float>(source[i]));
  });
}

// splitmix64 (Steele et al., OOPSLA 2014): a good hash of a counter.
__device__ uint64_t Hash(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

template <typename Target>
__global__ void __launch_bounds__(kNumThreads)
    FillUniformKernel(uint64_t seed, float half_width, int64_t size, Target* target) {
  ForEach(size, [&](int64_t i) {
    const auto bits = static_cast<int64_t>(Hash(seed + static_cast<uint64_t>(i)) >> 40);
    target[i] =
        static_cast<Target>(half_width * 0x1p-23f * static_cast<float>(bits - (int64_t{1} << 23)));
  });
}

__global__ void __launch_bounds__(kNumThreads)
    FillKernel(float value, int64_t size, float* target) {
  ForEach(size, [&](int64_t i) { target[i] = value; });
}

}  // namespace

template <typename Target>
cudaError_t LaunchConvertRows(const void* source, DType source_type, int32_t first_row,
                              int32_t num_rows, int32_t num_columns, const RowMap& map,
                              Target* target, cudaStream_t stream) {
  const int64_t size = int64_t{num_rows} * num_columns;
  const auto launch = [&]<typename Source>(const Source* elements) {
    return LaunchOver(size, ConvertRowsKernel<Source, Target>, stream, elements, first_row, size,
                      num_columns, map, target);
  };
  switch (source_type) {
    case DType::kFloat32:
      return launch(static_cast<const float*>(source));
    case DType::kFloat16:
      return launch(static_cast<const __half*>(source));
    case DType::kBFloat16:
      return launch(static_cast<const __nv_bfloat16*>(source));
  }
  return cudaErrorInvalidValue;
}

template <typename Target>
cudaError_t LaunchFillUniform(uint64_t seed, float deviation, int64_t size, Target* target,
                              cudaStream_t stream) {
  constexpr float kWidthOfDeviation = 1.7320508f;  // sqrt(3)
  return LaunchOver(size, FillUniformKernel<Target>, stream, seed, deviation * kWidthOfDeviation,
                    size, target);
}

cudaError_t LaunchFill(float value, int64_t size, float* target, cudaStream_t stream) {
  return LaunchOver(size, FillKernel, stream, value, size, target);
}

#define TIDAL_INSTANTIATE_WEIGHT_LAYOUT(Target)                                                 \
  template cudaError_t LaunchConvertRows<Target>(const void*, DType, int32_t, int32_t, int32_t, \
                                                 const RowMap&, Target*, cudaStream_t);         \
  template cudaError_t LaunchFillUniform<Target>(uint64_t, float, int64_t, Target*, cudaStream_t)
TIDAL_INSTANTIATE_WEIGHT_LAYOUT(float);
TIDAL_INSTANTIATE_WEIGHT_LAYOUT(__nv_bfloat16);
TIDAL_INSTANTIATE_WEIGHT_LAYOUT(__half);
#undef TIDAL_INSTANTIATE_WEIGHT_LAYOUT

}  // namespace tidal::cuda
