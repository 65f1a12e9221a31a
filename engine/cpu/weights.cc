#include "engine/cpu/weights.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/backend/status_macros.h"

namespace tidal::cpu {
namespace {

void LoadVector(const TensorView& view, int64_t offset, absl::Span<float> out) {
  if (view.present()) ConvertToFloat(view, 0, view.num_elements(), out.data() + offset);
}

// splitmix64 (Steele et al., OOPSLA 2014): a good hash of a counter.
uint64_t Hash(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Uniform numbers with mean 0 and the given deviation; element i depends on the seed and i alone.
void FillUniform(uint64_t seed, int64_t first_element, float deviation, absl::Span<float> out) {
  const float scale = deviation * std::sqrt(3.0f) * 0x1p-23f;
  for (size_t i = 0; i < out.size(); ++i) {
    const uint64_t bits = Hash(seed + static_cast<uint64_t>(first_element) + i) >> 40;
    out[i] = scale * static_cast<float>(static_cast<int64_t>(bits) - (int64_t{1} << 23));
  }
}

void FillUniform(uint64_t seed, PackedMatrix* matrix, ThreadPool* pool) {
  const float deviation = 1.0f / std::sqrt(static_cast<float>(matrix->num_inputs()));
  const int num_tasks = (matrix->num_outputs() + kPanelWidth - 1) / kPanelWidth;
  pool->ParallelFor(num_tasks, [&](int task, int) {
    std::vector<float> row(static_cast<size_t>(matrix->num_inputs()));
    const int32_t end = std::min(matrix->num_outputs(), (task + 1) * kPanelWidth);
    for (int32_t output = task * kPanelWidth; output < end; ++output) {
      FillUniform(seed, int64_t{output} * matrix->num_inputs(), deviation, absl::MakeSpan(row));
      matrix->SetOutput(output, row.data());
    }
  });
}

}  // namespace

void CpuWeights::LayOut(const ModelShape& shape, Arena* arena) {
  const int32_t qkv_size = shape.query_size() + 2 * shape.kv_size();
  const auto bias = [arena](bool present, int64_t size) {
    return present ? arena->Take<float>(size) : absl::Span<float>();
  };
  layers_.resize(static_cast<size_t>(shape.num_layers));
  for (CpuLayerWeights& layer : layers_) {
    layer.attention_norm = arena->Take<float>(shape.hidden_size);
    layer.qkv = PackedMatrix(qkv_size, shape.hidden_size, arena);
    layer.qkv_bias = bias(shape.attention_qkv_bias, qkv_size);
    layer.output = PackedMatrix(shape.hidden_size, shape.query_size(), arena);
    layer.output_bias = bias(shape.attention_output_bias, shape.hidden_size);
    layer.mlp_norm = arena->Take<float>(shape.hidden_size);
    layer.gate_up = PackedMatrix(2 * shape.intermediate_size, shape.hidden_size, arena);
    layer.gate_up_bias = bias(shape.mlp_bias, 2 * shape.intermediate_size);
    layer.down = PackedMatrix(shape.hidden_size, shape.intermediate_size, arena);
    layer.down_bias = bias(shape.mlp_bias, shape.hidden_size);
  }
  final_norm_ = arena->Take<float>(shape.hidden_size);
  lm_head_ = PackedMatrix(shape.vocab_size, shape.hidden_size, arena);
  embedding_ = {};
  if (!shape.tied_embeddings) {
    embedding_ = arena->Take<float>(int64_t{shape.vocab_size} * shape.hidden_size);
  }
}

absl::Status CpuWeights::Allocate(const ModelShape& shape) {
  arena_ = Arena();
  Arena count;
  LayOut(shape, &count);
  TIDAL_ASSIGN_OR_RETURN(
      arena_, Arena::Allocate(count.used_bytes(), /*commit=*/false, "the weights in float32"));
  LayOut(shape, &arena_);
  return absl::OkStatus();
}

absl::Status CpuWeights::Load(const ModelShape& shape, const ModelWeights& weights,
                              ThreadPool* pool) {
  TIDAL_RETURN_IF_ERROR(Allocate(shape));
  const int32_t query_size = shape.query_size();
  const int32_t kv_size = shape.kv_size();
  for (size_t i = 0; i < layers_.size(); ++i) {
    CpuLayerWeights& layer = layers_[i];
    const LayerWeights& source = weights.layers[i];
    LoadVector(source.attention_norm, 0, layer.attention_norm);
    layer.qkv.SetOutputs(0, source.query_projection, pool);
    layer.qkv.SetOutputs(query_size, source.key_projection, pool);
    layer.qkv.SetOutputs(query_size + kv_size, source.value_projection, pool);
    LoadVector(source.query_bias, 0, layer.qkv_bias);
    LoadVector(source.key_bias, query_size, layer.qkv_bias);
    LoadVector(source.value_bias, query_size + kv_size, layer.qkv_bias);
    layer.output.SetOutputs(0, source.output_projection, pool);
    LoadVector(source.output_bias, 0, layer.output_bias);
    LoadVector(source.mlp_norm, 0, layer.mlp_norm);
    layer.gate_up.SetOutputs(0, source.gate_projection, pool);
    layer.gate_up.SetOutputs(shape.intermediate_size, source.up_projection, pool);
    LoadVector(source.gate_bias, 0, layer.gate_up_bias);
    LoadVector(source.up_bias, shape.intermediate_size, layer.gate_up_bias);
    layer.down.SetOutputs(0, source.down_projection, pool);
    LoadVector(source.down_bias, 0, layer.down_bias);
  }
  LoadVector(weights.final_norm, 0, final_norm_);
  lm_head_.SetOutputs(0, shape.tied_embeddings ? weights.embedding : weights.lm_head, pool);
  if (!shape.tied_embeddings) LoadVector(weights.embedding, 0, embedding_);
  return absl::OkStatus();
}

absl::Status CpuWeights::FillRandom(const ModelShape& shape, uint64_t seed, ThreadPool* pool) {
  TIDAL_RETURN_IF_ERROR(Allocate(shape));
  uint64_t num_tensors = 0;
  const auto next_seed = [&] { return Hash(Hash(seed) + num_tensors++); };
  const auto fill_bias = [&](absl::Span<float> bias) { FillUniform(next_seed(), 0, 0.02f, bias); };
  for (CpuLayerWeights& layer : layers_) {
    std::fill(layer.attention_norm.begin(), layer.attention_norm.end(), 1.0f);
    std::fill(layer.mlp_norm.begin(), layer.mlp_norm.end(), 1.0f);
    for (PackedMatrix* matrix : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) {
      FillUniform(next_seed(), matrix, pool);
    }
    for (absl::Span<float> bias :
         {layer.qkv_bias, layer.output_bias, layer.gate_up_bias, layer.down_bias}) {
      fill_bias(bias);
    }
  }
  std::fill(final_norm_.begin(), final_norm_.end(), 1.0f);
  FillUniform(next_seed(), &lm_head_, pool);
  FillUniform(next_seed(), 0, 1.0f / std::sqrt(static_cast<float>(shape.hidden_size)), embedding_);
  return absl::OkStatus();
}

void CpuWeights::CopyEmbedding(int32_t token_id, float* row) const {
  if (embedding_.empty()) {
    lm_head_.CopyOutput(token_id, row);
    return;
  }
  const int64_t hidden_size = lm_head_.num_inputs();
  std::copy_n(embedding_.data() + token_id * hidden_size, hidden_size, row);
}

}  // namespace tidal::cpu
