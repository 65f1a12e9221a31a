// A model's weights in float32, packed for matmul.h: q, k and v fused into one matrix, gate and up
// into another. Immutable once filled.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/backend/model_shape.h"
#include "engine/backend/tensor_view.h"
#include "engine/cpu/arena.h"
#include "engine/cpu/matmul.h"
#include "engine/cpu/thread_pool.h"

namespace tidal::cpu {

// Biases are empty where the model has none.
struct CpuLayerWeights {
  absl::Span<float> attention_norm;  // [hidden]
  PackedMatrix qkv;                  // [query_size + 2 * kv_size, hidden]
  absl::Span<float> qkv_bias;
  PackedMatrix output;  // [hidden, query_size]
  absl::Span<float> output_bias;
  absl::Span<float> mlp_norm;  // [hidden]
  PackedMatrix gate_up;        // [2 * intermediate, hidden]
  absl::Span<float> gate_up_bias;
  PackedMatrix down;  // [hidden, intermediate]
  absl::Span<float> down_bias;
};

class CpuWeights {
 public:
  // RESOURCE_EXHAUSTED where they do not fit.
  absl::Status Load(const ModelShape& shape, const ModelWeights& weights, ThreadPool* pool);

  // Uniform weights with a standard deviation of 1 / sqrt(inputs), biases of 0.02, norms of 1; a
  // function of the seed alone.
  absl::Status FillRandom(const ModelShape& shape, uint64_t seed, ThreadPool* pool);

  const CpuLayerWeights& layer(int32_t index) const { return layers_[static_cast<size_t>(index)]; }
  absl::Span<const float> final_norm() const { return final_norm_; }
  const PackedMatrix& lm_head() const { return lm_head_; }

  // A token's row of the embedding matrix, [hidden].
  void CopyEmbedding(int32_t token_id, float* row) const;

  int64_t size_bytes() const { return arena_.used_bytes(); }

 private:
  absl::Status Allocate(const ModelShape& shape);
  void LayOut(const ModelShape& shape, Arena* arena);

  Arena arena_;
  std::vector<CpuLayerWeights> layers_;
  absl::Span<float> final_norm_;
  absl::Span<float> embedding_;  // [vocab, hidden]; empty where tied to the LM head
  PackedMatrix lm_head_;         // [vocab, hidden]
};

}  // namespace tidal::cpu
