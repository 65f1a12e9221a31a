// Matrix products of more rows than skinny_linear.h takes, by cuBLASLt.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/backend/tensor_view.h"

namespace tidal::cuda {

// y [rows, outputs] = x [rows, inputs] W^T, W [outputs, inputs] row-major as in checkpoints; sums
// are float32.
struct Product {
  int32_t rows = 0;
  int32_t inputs = 0;
  int32_t outputs = 0;
  const void* x = nullptr;       // of the compute type
  const void* weight = nullptr;  // of the compute type
  void* y = nullptr;
  enum class Store : uint8_t {
    kRounded,     // y of the compute type
    kFloat,       // y of float
    kAccumulate,  // y of float, to which the product is added
  } store = Store::kRounded;
};

// Engine thread only.
class Matmul {
 public:
  virtual ~Matmul() = default;

  // Enqueues the product. Can be captured in a graph. INTERNAL where cuBLASLt fails.
  virtual absl::Status Run(const Product& product, cudaStream_t stream) = 0;

  // Device memory held.
  virtual int64_t workspace_bytes() const = 0;
};

// `compute_type` is kBFloat16 or kFloat16. On the current device.
absl::StatusOr<std::unique_ptr<Matmul>> CreateMatmul(DType compute_type);

}  // namespace tidal::cuda
