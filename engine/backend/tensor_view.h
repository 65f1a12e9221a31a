// Read-only views of weights in host memory, as the checkpoint loader hands them to a backend.
// A view owns nothing: the checkpoint (a memory-mapped file) must outlive it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tidal {

enum class DType : uint8_t { kFloat32, kFloat16, kBFloat16 };

constexpr size_t SizeOf(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// A dense row-major matrix, or a vector where rows == 1. Absent tensors have a null pointer.
struct TensorView {
  const void* bytes = nullptr;  // may be unaligned: safetensors promises no alignment
  DType dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t cols = 0;

  bool present() const { return bytes != nullptr; }
  int64_t num_elements() const { return rows * cols; }
  size_t size_bytes() const { return static_cast<size_t>(num_elements()) * SizeOf(dtype); }
};

// Matrices are stored as in Hugging Face checkpoints: [outputs, inputs].
struct LayerWeights {
  TensorView attention_norm;     // [1, hidden]
  TensorView query_projection;   // [query_size, hidden]
  TensorView key_projection;     // [kv_size, hidden]
  TensorView value_projection;   // [kv_size, hidden]
  TensorView output_projection;  // [hidden, query_size]
  TensorView query_bias;         // [1, query_size], absent without attention_qkv_bias
  TensorView key_bias;           // [1, kv_size]
  TensorView value_bias;         // [1, kv_size]
  TensorView output_bias;        // [1, hidden], absent without attention_output_bias
  TensorView mlp_norm;           // [1, hidden]
  TensorView gate_projection;    // [intermediate, hidden]
  TensorView up_projection;      // [intermediate, hidden]
  TensorView down_projection;    // [hidden, intermediate]
  TensorView gate_bias;          // [1, intermediate], absent without mlp_bias
  TensorView up_bias;            // [1, intermediate]
  TensorView down_bias;          // [1, hidden]
};

struct ModelWeights {
  TensorView embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  TensorView final_norm;  // [1, hidden]
  TensorView lm_head;     // [vocab, hidden]; absent where embeddings are tied
};

}  // namespace tidal
