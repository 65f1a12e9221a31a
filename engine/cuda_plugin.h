// Opens the CUDA backend, which lives in a shared library of its own (backend/cuda_plugin.h).
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"
#include "engine/backend/cuda_plugin.h"

namespace tidal {

// Opens libtidal_cuda.so, beside the program or in ../lib from there, and creates its backend.
// UNAVAILABLE says what is missing: the plugin, a library that it needs, a driver or a device;
// other errors are CreateCudaBackendFunction's. The library stays open until the program ends.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const ModelShape& shape,
                                                           const StepLimits& limits,
                                                           const CudaBackendOptions& options);

}  // namespace tidal
