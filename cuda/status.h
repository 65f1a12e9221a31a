// Errors of the CUDA runtime as absl::Status.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace tidal::cuda {

// INTERNAL (a device fault) with CUDA's name and description; `what` says what was being done.
absl::Status ToStatus(cudaError_t error, absl::string_view what);

}  // namespace tidal::cuda

// Returns an INTERNAL status from the function where the call fails.
#define TIDAL_RETURN_IF_CUDA_ERROR(call)                                      \
  do {                                                                        \
    if (const cudaError_t cuda_error_ = (call); cuda_error_ != cudaSuccess) { \
      return ::tidal::cuda::ToStatus(cuda_error_, #call);                     \
    }                                                                         \
  } while (false)
