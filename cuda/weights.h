// A model's weights in device memory, in the orders that the kernels want: q, k and v fused into
// one matrix, rows of query and key heads interleaved in RoPE's pairs; gate and up fused, row by
// row in turn (skinny_linear.h). Immutable once filled.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "cuda/device.h"
#include "engine/backend/model_shape.h"
#include "engine/backend/tensor_view.h"

namespace tidal::cuda {

// T is __nv_bfloat16 or __half. Biases are null where the model has none.
template <typename T>
struct DeviceLayerWeights {
  float* attention_norm = nullptr;  // [hidden]
  T* qkv = nullptr;                 // [query_size + 2 * kv_size, hidden]
  float* qkv_bias = nullptr;        // in the order of qkv's rows
  T* output = nullptr;              // [hidden, query_size]
  float* output_bias = nullptr;     // [hidden]
  float* mlp_norm = nullptr;        // [hidden]
  T* gate_up = nullptr;             // [2 * intermediate, hidden]
  float* gate_up_bias = nullptr;    // in the order of gate_up's rows
  T* down = nullptr;                // [hidden, intermediate]
  float* down_bias = nullptr;       // [hidden]
};

template <typename T>
class DeviceWeights {
 public:
  explicit DeviceWeights(const ModelShape& shape) : shape_(shape) {}

  // Both wait until the weights are in place. RESOURCE_EXHAUSTED where they need more than
  // `limit_bytes` of device memory.
  absl::Status Load(const ModelWeights& weights, int64_t limit_bytes);
  // Uniform weights with a standard deviation of 1 / sqrt(inputs), biases of 0.02, norms of 1; a
  // function of the seed alone.
  absl::Status FillRandom(uint64_t seed, int64_t limit_bytes);

  const DeviceLayerWeights<T>& layer(int32_t index) const {
    return layers_[static_cast<size_t>(index)];
  }
  const T* embedding() const { return embedding_; }  // [vocab, hidden]
  const float* final_norm() const { return final_norm_; }
  const T* lm_head() const { return lm_head_; }  // [vocab, hidden]; the embedding where tied
  const float* inverse_frequencies() const { return inverse_frequencies_; }  // [head_dim / 2]

  int64_t size_bytes() const { return arena_.used_bytes(); }

 private:
  absl::Status Allocate(int64_t limit_bytes);
  void LayOut(DeviceArena* arena);

  const ModelShape shape_;
  DeviceArena arena_;
  std::vector<DeviceLayerWeights<T>> layers_;
  T* embedding_ = nullptr;
  float* final_norm_ = nullptr;
  T* lm_head_ = nullptr;
  float* inverse_frequencies_ = nullptr;
};

}  // namespace tidal::cuda
