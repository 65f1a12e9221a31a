// The CPU backend: the specification of every op of the seam, in float32, and the default where
// there is no GPU. Stages run when they are called, on a pool of threads. Results do not depend on
// the number of threads, nor a sequence's on the others in its batch; see engine/cpu/kernels.h.
// Not thread-safe, as the seam says.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"

namespace tidal {

struct CpuBackendOptions {
  int num_threads = 0;  // the engine's own among them; 0 = every processor the process may use
};

// Most elements of a head.
inline constexpr int32_t kMaxCpuHeadDim = 512;

// INVALID_ARGUMENT names a size of the shape or a limit that is out of range (head_dim must be a
// multiple of 16), RESOURCE_EXHAUSTED the bytes that the workspaces need and those available.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const ModelShape& shape,
                                                          const StepLimits& limits,
                                                          const CpuBackendOptions& options);

}  // namespace tidal
