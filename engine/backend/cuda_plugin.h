// What the engine and the CUDA plugin (cuda/plugin.cc, libtidal_cuda.so) agree on. The plugin is
// opened when a GPU is to be used, so that one program runs on machines without CUDA's libraries.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "engine/backend/backend.h"
#include "engine/backend/model_shape.h"
#include "engine/backend/tensor_view.h"

namespace tidal {

struct CudaBackendOptions {
  double memory_fraction = 0.9;  // (0, 1] of the device's memory that the backend may hold
  // Of weights, activations and the KV cache: kBFloat16 or kFloat16. Sums are float32.
  DType compute_type = DType::kBFloat16;
};

// Raised with each change of a type that crosses the border: a plugin of another version is not
// called.
inline constexpr int32_t kCudaPluginVersion = 2;

// The plugin's two symbols, with C linkage.
inline constexpr char kCudaPluginVersionSymbol[] = "TidalCudaPluginVersion";
inline constexpr char kCreateCudaBackendSymbol[] = "TidalCreateCudaBackend";
using CudaPluginVersionFunction = int32_t (*)();
// UNAVAILABLE without a driver or device; INVALID_ARGUMENT names a size, limit or option that is
// out of range; RESOURCE_EXHAUSTED names the bytes needed and available.
using CreateCudaBackendFunction = void (*)(const ModelShape& shape, const StepLimits& limits,
                                           const CudaBackendOptions& options,
                                           std::unique_ptr<Backend>* backend, absl::Status* status);

}  // namespace tidal
