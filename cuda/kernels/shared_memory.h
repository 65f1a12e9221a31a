// How a step's kernels share a multiprocessor's on-chip memory.
#ifndef TIDAL_CUDA_KERNELS_SHARED_MEMORY_H_
#define TIDAL_CUDA_KERNELS_SHARED_MEMORY_H_

#include <cuda_runtime.h>

#include <cstddef>

namespace tidal::cuda {

// Lets a block of `kernel` take up to `num_bytes` of dynamic shared memory, and asks for as much
// shared memory beside the L1 cache as a multiprocessor has. Every kernel of a decode step asks for
// that same share: a multiprocessor changes it only while it is empty, so a kernel that asked for
// another would wait for the last block of the kernel in front and keep the one behind it waiting.
template <typename... Parameters>
cudaError_t AllowSharedBytes(void (*kernel)(Parameters...), size_t num_bytes) {
  if (cudaError_t error = cudaFuncSetAttribute(
          kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
      error != cudaSuccess) {
    return error;
  }
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(num_bytes));
}

}  // namespace tidal::cuda

#endif  // TIDAL_CUDA_KERNELS_SHARED_MEMORY_H_
