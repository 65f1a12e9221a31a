// cuda/matmul.h without cuBLASLt: plain loops, for the emulation.

#include "cuda/matmul.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <vector>

#include "tests/cuda/emulation/runtime.h"

namespace tidal::cuda {
namespace {

std::vector<float> Widen(const void* elements, int64_t size, DType type) {
  std::vector<float> floats(static_cast<size_t>(size));
  for (size_t i = 0; i < floats.size(); ++i) {
    floats[i] = type == DType::kFloat16
                    ? static_cast<float>(static_cast<const __half*>(elements)[i])
                    : static_cast<float>(static_cast<const __nv_bfloat16*>(elements)[i]);
  }
  return floats;
}

void Store(const Product& product, DType type, int64_t index, float value) {
  if (product.store == Product::Store::kRounded) {
    if (type == DType::kFloat16) {
      static_cast<__half*>(product.y)[index] = static_cast<__half>(value);
    } else {
      static_cast<__nv_bfloat16*>(product.y)[index] = static_cast<__nv_bfloat16>(value);
    }
    return;
  }
  float* const y = static_cast<float*>(product.y) + index;
  *y = product.store == Product::Store::kAccumulate ? *y + value : value;
}

void Multiply(const Product& product, DType type) {
  const int64_t inputs = product.inputs;
  const std::vector<float> x = Widen(product.x, product.rows * inputs, type);
  const std::vector<float> weight = Widen(product.weight, product.outputs * inputs, type);
  for (int32_t row = 0; row < product.rows; ++row) {
    for (int32_t output = 0; output < product.outputs; ++output) {
      const float* const a = x.data() + row * inputs;
      const float* const b = weight.data() + output * inputs;
      float sum = 0.0f;
      for (int64_t i = 0; i < inputs; ++i) sum += a[i] * b[i];
      Store(product, type, int64_t{row} * product.outputs + output, sum);
    }
  }
}

class EmulatedMatmul final : public Matmul {
 public:
  explicit EmulatedMatmul(DType type) : type_(type) {}

  absl::Status Run(const Product& product, cudaStream_t stream) override {
    const cudaError_t error =
        emulation::Enqueue(stream, [product, type = type_] { Multiply(product, type); });
    return error == cudaSuccess ? absl::OkStatus() : absl::InternalError("not enqueued");
  }
  int64_t workspace_bytes() const override { return 0; }

 private:
  const DType type_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Matmul>> CreateMatmul(DType compute_type) {
  return std::make_unique<EmulatedMatmul>(compute_type);
}

}  // namespace tidal::cuda
