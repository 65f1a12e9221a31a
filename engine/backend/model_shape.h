// The sizes and constants of a Llama-family model, as far as arithmetic needs them. Plain values,
// set once at start-up and shared by the engine and every backend.
#pragma once

#include <cstdint>
#include <vector>

namespace tidal {

struct ModelShape {
  int32_t num_layers = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;  // width of the MLP
  int32_t num_query_heads = 0;
  int32_t num_kv_heads = 0;  // divides num_query_heads
  int32_t head_dim = 0;      // need not be hidden_size / num_query_heads
  int32_t vocab_size = 0;
  float rms_norm_eps = 1e-5f;
  bool tied_embeddings = false;     // the LM head is the embedding matrix
  bool attention_qkv_bias = false;  // biases on the query, key and value projections
  bool attention_output_bias = false;
  bool mlp_bias = false;

  // [head_dim / 2] radians a position; RoPE scaling is already applied. Pair i of a head is the
  // elements (i, i + head_dim / 2), Hugging Face's "rotate half" layout.
  std::vector<float> rope_inverse_frequencies = {};

  int32_t query_size() const { return num_query_heads * head_dim; }
  int32_t kv_size() const { return num_kv_heads * head_dim; }
  int32_t group_size() const { return num_query_heads / num_kv_heads; }
};

}  // namespace tidal
