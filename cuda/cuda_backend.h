// The CUDA backend: the stages of the seam as launches on one stream. A step's stages are noted
// down as they are called; a step of decodes alone is launched as a graph, recorded once for each
// combination of stages, row bucket and attention modes, and any other step launch by launch.
// Nothing waits for the device but EndStep, for the oldest of at most two steps.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"
#include "engine/backend/cuda_plugin.h"

namespace tidal {

// As CreateCudaBackendFunction (engine/backend/cuda_plugin.h) says.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackendOnDevice(
    const ModelShape& shape, const StepLimits& limits, const CudaBackendOptions& options);

}  // namespace tidal
