#include "cuda/kernels/unpack_step.h"

#include <algorithm>

#include "cuda/kernels/ptx.cuh"

namespace tidal::cuda {
namespace {

constexpr int32_t kNumThreads = 256;
constexpr int32_t kMaxBlocks = 64;

template <typename Element>
__device__ void Copy(const Element* source, int32_t size, Element* target) {
  const int32_t stride = static_cast<int32_t>(gridDim.x) * kNumThreads;
  for (int32_t i = static_cast<int32_t>(blockIdx.x * kNumThreads + threadIdx.x); i < size;
       i += stride) {
    target[i] = source[i];
  }
}

__global__ void __launch_bounds__(kNumThreads)
    UnpackStepKernel(const __grid_constant__ StepImage image,
                     const __grid_constant__ StepTablesOnDevice tables) {
  LetNextKernelStart();
  const int32_t stride = static_cast<int32_t>(gridDim.x) * kNumThreads;
  for (int32_t i = static_cast<int32_t>(blockIdx.x * kNumThreads + threadIdx.x);
       i < image.num_changes; i += stride) {
    const BlockTableChange change = image.changes[i];
    tables.block_tables[change.index] = change.block_id;
  }
  if (!image.has_tables) return;
  if (blockIdx.x == 0 && threadIdx.x == 0) *tables.counts = image.counts;
  Copy(image.token_ids, image.counts.num_rows, tables.token_ids);
  Copy(image.positions, image.counts.num_rows, tables.positions);
  Copy(image.cache_rows, image.counts.num_rows, tables.cache_rows);
  Copy(image.chunk_of_row, image.counts.num_rows, tables.chunk_of_row);
  Copy(image.chunks, image.counts.num_chunks, tables.chunks);
  Copy(image.sampling_chunks, image.counts.num_samples, tables.sampling_chunks);
  Copy(image.prefill_tiles, image.counts.num_prefill_tiles, tables.prefill_tiles);
}

}  // namespace

cudaError_t LaunchUnpackStep(const StepImage& image, const StepTablesOnDevice& tables,
                             cudaStream_t stream) {
  const int32_t size = std::max(image.num_changes, image.has_tables ? image.counts.num_rows : 0);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(
      static_cast<uint32_t>(std::clamp((size + kNumThreads - 1) / kNumThreads, 1, kMaxBlocks)));
  config.blockDim = dim3(kNumThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, UnpackStepKernel, image, tables);
}

}  // namespace tidal::cuda
