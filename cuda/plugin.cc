// The two symbols of libtidal_cuda.so.
#include <utility>

#include "cuda/cuda_backend.h"
#include "engine/backend/cuda_plugin.h"

extern "C" {

__attribute__((visibility("default"))) int32_t TidalCudaPluginVersion() {
  return tidal::kCudaPluginVersion;
}

__attribute__((visibility("default"))) void TidalCreateCudaBackend(
    const tidal::ModelShape& shape, const tidal::StepLimits& limits,
    const tidal::CudaBackendOptions& options, std::unique_ptr<tidal::Backend>* backend,
    absl::Status* status) {
  absl::StatusOr<std::unique_ptr<tidal::Backend>> created =
      tidal::CreateCudaBackendOnDevice(shape, limits, options);
  *status = created.status();
  if (created.ok()) *backend = *std::move(created);
}

}  // extern "C"
