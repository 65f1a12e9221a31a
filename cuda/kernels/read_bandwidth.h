// How fast the device's memory is read: the ceiling that decoding is measured against.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tidal::cuda {

// The median of several passes over `size_bytes` at `memory` (aligned to 16 bytes). `sink` is
// device memory of a float that may be overwritten. Waits for the stream.
cudaError_t MeasureReadBandwidth(const void* memory, int64_t size_bytes,
                                 int32_t num_multiprocessors, cudaStream_t stream, float* sink,
                                 double* bytes_a_second);

}  // namespace tidal::cuda
