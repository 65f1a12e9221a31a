// A Llama model with TidalDecode in float64 and plain loops: what every backend is compared with.
// One sequence at a time, KV in one contiguous array, nothing shared with a backend's code.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/types/span.h"
#include "engine/backend/attention.h"
#include "engine/backend/model_shape.h"
#include "engine/backend/tensor_view.h"

namespace tidal::testing {

// A small shape with every pair of a head turning at a frequency of its own.
ModelShape MakeShape(int32_t num_layers, int32_t num_query_heads, int32_t num_kv_heads,
                     int32_t head_dim);

// Random weights of a shape in host memory. Their values are exact in bfloat16, so a backend that
// stores them so loses nothing.
class HostWeights {
 public:
  HostWeights(const ModelShape& shape, uint64_t seed);

  ModelWeights views() const { return views_; }

  // The elements behind a view of views(), to be changed before they are loaded.
  static absl::Span<float> Elements(const TensorView& view);

 private:
  TensorView Add(int64_t rows, int64_t cols, double deviation, double mean);

  uint64_t state_;
  std::deque<std::vector<float>> tensors_;
  ModelWeights views_;
};

// The K and V that one sequence's tokens left: [layer][position][kv_size].
struct ReferenceSequence {
  std::vector<std::vector<double>> keys;
  std::vector<std::vector<double>> values;
  int32_t num_tokens = 0;
};

// What one select layer chose, [sets][token_budget], and by which scores, [sets][context]; of a
// quest layer the positions of the chosen blocks, and the bounds of all blocks.
struct ReferenceSelection {
  std::vector<std::vector<int32_t>> positions;
  std::vector<std::vector<double>> scores;
};

struct ReferenceStep {
  absl::Span<const int32_t> token_ids;  // at the positions after those in the sequence
  std::vector<AttentionKind> kinds;     // one for each layer to be run, from layer 0 on
  Selection selection = {};
  bool attention = true;  // whether layers run their attention
  bool mlp = true;        // whether layers run their MLP
  // Sparse and quest layers attend these positions instead of those the reference selected, where
  // set.
  const std::vector<std::vector<int32_t>>* positions = nullptr;
};

struct ReferenceResult {
  std::vector<double> logits;                  // [vocab] of the last token
  std::vector<ReferenceSelection> selections;  // of the select and quest layers, in order
};

class ReferenceModel {
 public:
  ReferenceModel(const ModelShape& shape, const ModelWeights& weights);

  // Runs a step and appends its tokens to the sequence. Kinds other than kFull need one token.
  ReferenceResult Run(const ReferenceStep& step, ReferenceSequence* sequence) const;

 private:
  using Vector = std::vector<double>;
  struct Matrix {
    int64_t rows = 0;
    int64_t cols = 0;
    Vector elements;
    Vector bias;  // [rows] or empty
  };
  struct Layer {
    Vector attention_norm;
    Matrix query, key, value, output;
    Vector mlp_norm;
    Matrix gate, up, down;
  };

  static Vector Convert(const TensorView& view);
  static Matrix Convert(const TensorView& view, const TensorView& bias);
  static Vector Multiply(const Matrix& matrix, const Vector& x);
  Vector Norm(const Vector& x, const Vector& weight) const;
  void Rotate(int32_t position, Vector* heads) const;

  // Attention of one query at `position`; each query head attends positions[set of head], or all up
  // to its own where `positions` is null. Scores are [query head][attended] where asked for.
  Vector Attend(const Vector& query, const Vector& keys, const Vector& values, int32_t position,
                const std::vector<std::vector<int32_t>>* positions,
                std::vector<Vector>* scores) const;
  ReferenceSelection Select(const std::vector<Vector>& scores, const Selection& selection) const;
  // Quest's blocks for one query: their positions, and the bounds of all, for each query head.
  ReferenceSelection ChooseBlocks(const Vector& query, const Vector& keys,
                                  const Selection& selection) const;

  // One layer's stages on `hidden`, [token][hidden]; only the tokens from first_needed on are
  // carried through, of the others just K and V.
  void RunAttention(const ReferenceStep& step, size_t layer_index, size_t first_needed,
                    ReferenceSequence* sequence, std::vector<Vector>* hidden,
                    ReferenceResult* result) const;
  void RunMlp(const Layer& layer, Vector* hidden) const;

  ModelShape shape_;
  Matrix embedding_;
  std::vector<Layer> layers_;
  Vector final_norm_;
  Matrix lm_head_;
};

}  // namespace tidal::testing
