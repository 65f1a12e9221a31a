#include "tests/engine/backend/reference_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

namespace tidal::testing {
namespace {

float HalfToFloat(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  const float sign = bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
}

float ElementAt(const TensorView& view, int64_t index) {
  const std::byte* source =
      static_cast<const std::byte*>(view.bytes) + static_cast<size_t>(index) * SizeOf(view.dtype);
  if (view.dtype == DType::kFloat32) {
    float value;
    std::memcpy(&value, source, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, source, sizeof(bits));
  if (view.dtype == DType::kFloat16) return HalfToFloat(bits);
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

}  // namespace

ModelShape MakeShape(int32_t num_layers, int32_t num_query_heads, int32_t num_kv_heads,
                     int32_t head_dim) {
  ModelShape shape;
  shape.num_layers = num_layers;
  shape.hidden_size = 72;
  shape.intermediate_size = 104;
  shape.num_query_heads = num_query_heads;
  shape.num_kv_heads = num_kv_heads;
  shape.head_dim = head_dim;
  shape.vocab_size = 203;
  for (int32_t i = 0; i < head_dim / 2; ++i) {
    shape.rope_inverse_frequencies.push_back(
        static_cast<float>(std::pow(10000.0, -2.0 * i / head_dim)));
  }
  return shape;
}

HostWeights::HostWeights(const ModelShape& shape, uint64_t seed) : state_(seed) {
  const auto matrix = [this](int64_t rows, int64_t cols) {
    return Add(rows, cols, 1.0 / std::sqrt(static_cast<double>(cols)), 0.0);
  };
  const auto norm = [&] { return Add(1, shape.hidden_size, 0.1, 1.0); };
  const auto bias = [this](bool present, int64_t size) {
    return present ? Add(1, size, 0.1, 0.0) : TensorView{};
  };
  views_.embedding = Add(shape.vocab_size, shape.hidden_size, 1.0, 0.0);
  for (int32_t i = 0; i < shape.num_layers; ++i) {
    LayerWeights layer;
    layer.attention_norm = norm();
    // Larger queries make attention choose, rather than average everything.
    layer.query_projection = Add(shape.query_size(), shape.hidden_size, 0.3, 0.0);
    layer.key_projection = matrix(shape.kv_size(), shape.hidden_size);
    layer.value_projection = matrix(shape.kv_size(), shape.hidden_size);
    layer.output_projection = matrix(shape.hidden_size, shape.query_size());
    layer.query_bias = bias(shape.attention_qkv_bias, shape.query_size());
    layer.key_bias = bias(shape.attention_qkv_bias, shape.kv_size());
    layer.value_bias = bias(shape.attention_qkv_bias, shape.kv_size());
    layer.output_bias = bias(shape.attention_output_bias, shape.hidden_size);
    layer.mlp_norm = norm();
    layer.gate_projection = matrix(shape.intermediate_size, shape.hidden_size);
    layer.up_projection = matrix(shape.intermediate_size, shape.hidden_size);
    layer.down_projection = matrix(shape.hidden_size, shape.intermediate_size);
    layer.gate_bias = bias(shape.mlp_bias, shape.intermediate_size);
    layer.up_bias = bias(shape.mlp_bias, shape.intermediate_size);
    layer.down_bias = bias(shape.mlp_bias, shape.hidden_size);
    views_.layers.push_back(layer);
  }
  views_.final_norm = norm();
  if (!shape.tied_embeddings) views_.lm_head = matrix(shape.vocab_size, shape.hidden_size);
}

TensorView HostWeights::Add(int64_t rows, int64_t cols, double deviation, double mean) {
  std::vector<float>& elements = tensors_.emplace_back(static_cast<size_t>(rows * cols));
  for (float& element : elements) {
    // Knuth's MMIX generator; its upper bits are uniform in [-sqrt(3), sqrt(3)) deviations.
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    const double uniform = static_cast<double>(state_ >> 11) * 0x1p-52 - 1.0;
    const float value = static_cast<float>(mean + uniform * std::sqrt(3.0) * deviation);
    element = std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0xffff0000u);
  }
  return {elements.data(), DType::kFloat32, rows, cols};
}

absl::Span<float> HostWeights::Elements(const TensorView& view) {
  return {static_cast<float*>(const_cast<void*>(view.bytes)),
          static_cast<size_t>(view.num_elements())};
}

ReferenceModel::ReferenceModel(const ModelShape& shape, const ModelWeights& weights)
    : shape_(shape),
      embedding_(Convert(weights.embedding, {})),
      final_norm_(Convert(weights.final_norm)),
      lm_head_(Convert(shape.tied_embeddings ? weights.embedding : weights.lm_head, {})) {
  for (const LayerWeights& layer : weights.layers) {
    layers_.push_back({
        .attention_norm = Convert(layer.attention_norm),
        .query = Convert(layer.query_projection, layer.query_bias),
        .key = Convert(layer.key_projection, layer.key_bias),
        .value = Convert(layer.value_projection, layer.value_bias),
        .output = Convert(layer.output_projection, layer.output_bias),
        .mlp_norm = Convert(layer.mlp_norm),
        .gate = Convert(layer.gate_projection, layer.gate_bias),
        .up = Convert(layer.up_projection, layer.up_bias),
        .down = Convert(layer.down_projection, layer.down_bias),
    });
  }
}

ReferenceModel::Vector ReferenceModel::Convert(const TensorView& view) {
  Vector elements;
  if (!view.present()) return elements;
  for (int64_t i = 0; i < view.num_elements(); ++i) elements.push_back(ElementAt(view, i));
  return elements;
}

ReferenceModel::Matrix ReferenceModel::Convert(const TensorView& view, const TensorView& bias) {
  return {view.rows, view.cols, Convert(view), Convert(bias)};
}

ReferenceModel::Vector ReferenceModel::Multiply(const Matrix& matrix, const Vector& x) {
  Vector y = matrix.bias;
  y.resize(static_cast<size_t>(matrix.rows));
  for (int64_t row = 0; row < matrix.rows; ++row) {
    const double* weights = matrix.elements.data() + row * matrix.cols;
    y[static_cast<size_t>(row)] += std::inner_product(x.begin(), x.end(), weights, 0.0);
  }
  return y;
}

ReferenceModel::Vector ReferenceModel::Norm(const Vector& x, const Vector& weight) const {
  const double sum = std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
  const double scale =
      1.0 / std::sqrt(sum / static_cast<double>(x.size()) + double{shape_.rms_norm_eps});
  Vector y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * weight[i];
  return y;
}

void ReferenceModel::Rotate(int32_t position, Vector* heads) const {
  const size_t head_dim = static_cast<size_t>(shape_.head_dim);
  for (size_t start = 0; start < heads->size(); start += head_dim) {
    for (size_t i = 0; i < head_dim / 2; ++i) {
      // The angle's rounding to float32 is part of the model, as Hugging Face runs it.
      const double angle = static_cast<float>(position) * shape_.rope_inverse_frequencies[i];
      double& x = (*heads)[start + i];
      double& y = (*heads)[start + i + head_dim / 2];
      const double old_x = x;
      x = old_x * std::cos(angle) - y * std::sin(angle);
      y = y * std::cos(angle) + old_x * std::sin(angle);
    }
  }
}

ReferenceModel::Vector ReferenceModel::Attend(const Vector& query, const Vector& keys,
                                              const Vector& values, int32_t position,
                                              const std::vector<std::vector<int32_t>>* positions,
                                              std::vector<Vector>* scores) const {
  const int64_t head_dim = shape_.head_dim;
  std::vector<int32_t> all(static_cast<size_t>(position) + 1);
  std::iota(all.begin(), all.end(), 0);
  Vector output(query.size());
  for (int64_t head = 0; head < shape_.num_query_heads; ++head) {
    const int64_t kv_head = head / shape_.group_size();
    const std::vector<int32_t>* attended = &all;
    if (positions != nullptr) {
      // A set for each query head, for each KV head, or for all.
      const auto num_sets = static_cast<int64_t>(positions->size());
      attended = &(*positions)[static_cast<size_t>(head * num_sets / shape_.num_query_heads)];
    }
    const double* q = query.data() + head * head_dim;
    Vector probabilities;
    for (const int32_t t : *attended) {
      const double* k = keys.data() + t * shape_.kv_size() + kv_head * head_dim;
      probabilities.push_back(std::inner_product(q, q + head_dim, k, 0.0) /
                              std::sqrt(static_cast<double>(head_dim)));
    }
    if (scores != nullptr) scores->push_back(probabilities);
    const double max = *std::max_element(probabilities.begin(), probabilities.end());
    double sum = 0.0;
    for (double& p : probabilities) sum += p = std::exp(p - max);
    double* out = output.data() + head * head_dim;
    for (size_t i = 0; i < attended->size(); ++i) {
      const double* v = values.data() + (*attended)[i] * shape_.kv_size() + kv_head * head_dim;
      for (int64_t d = 0; d < head_dim; ++d) out[d] += probabilities[i] / sum * v[d];
    }
  }
  return output;
}

ReferenceSelection ReferenceModel::Select(const std::vector<Vector>& scores,
                                          const Selection& selection) const {
  ReferenceSelection result;
  if (selection.scope == SelectionScope::kQueryHead) {
    result.scores = scores;
  } else {
    const bool one_set = selection.scope == SelectionScope::kLayer;
    const size_t group = one_set ? scores.size() : static_cast<size_t>(shape_.group_size());
    for (size_t head = 0; head < scores.size(); ++head) {
      if (head % group == 0) result.scores.emplace_back(scores[head].size());
      const double max = *std::max_element(scores[head].begin(), scores[head].end());
      double sum = 0.0;
      for (const double score : scores[head]) sum += std::exp(score - max);
      for (size_t t = 0; t < scores[head].size(); ++t) {
        const double probability = std::exp(scores[head][t] - max) / sum;
        double& pooled = result.scores.back()[t];
        pooled = one_set ? std::max(pooled, probability) : pooled + probability;
      }
    }
  }
  for (const Vector& pooled : result.scores) {
    const int32_t context = static_cast<int32_t>(pooled.size());
    const int32_t first_recent = context - std::max(selection.num_recent_tokens, 1);
    std::vector<int32_t> order(pooled.size());
    std::iota(order.begin(), order.end(), 0);
    const auto kept = [&](int32_t t) { return t < selection.num_sink_tokens || t >= first_recent; };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      if (kept(a) != kept(b)) return kept(a);
      return pooled[static_cast<size_t>(a)] > pooled[static_cast<size_t>(b)];
    });
    order.resize(static_cast<size_t>(selection.token_budget));
    std::sort(order.begin(), order.end());
    result.positions.push_back(order);
  }
  return result;
}

ReferenceSelection ReferenceModel::ChooseBlocks(const Vector& query, const Vector& keys,
                                                const Selection& selection) const {
  ReferenceSelection result;
  const int64_t head_dim = shape_.head_dim;
  const auto context = static_cast<int32_t>(static_cast<int64_t>(keys.size()) / shape_.kv_size());
  const int32_t num_blocks = (context + 15) / 16;
  for (int64_t head = 0; head < shape_.num_query_heads; ++head) {
    const int64_t first = head / shape_.group_size() * head_dim;
    Vector& bounds = result.scores.emplace_back();
    for (int32_t block = 0; block < num_blocks; ++block) {
      double bound = 0;
      for (int64_t d = 0; d < head_dim; ++d) {
        double min = 1e300;
        double max = -1e300;
        for (int32_t t = 16 * block; t < std::min(16 * block + 16, context); ++t) {
          const double key = keys[static_cast<size_t>(t * shape_.kv_size() + first + d)];
          min = std::min(min, key);
          max = std::max(max, key);
        }
        const double q = query[static_cast<size_t>(head * head_dim + d)];
        bound += std::max(q * min, q * max);
      }
      bounds.push_back(bound / std::sqrt(static_cast<double>(head_dim)));
    }
    // Blocks with what is always kept come first, then the highest bounds, then the lowest block.
    const int32_t first_recent = context - std::max(selection.num_recent_tokens, 1);
    const auto kept = [&](int32_t block) {
      return 16 * block < selection.num_sink_tokens || 16 * block + 15 >= first_recent;
    };
    std::vector<int32_t> order(bounds.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      if (kept(a) != kept(b)) return kept(a);
      return bounds[static_cast<size_t>(a)] > bounds[static_cast<size_t>(b)];
    });
    const auto num_kept = static_cast<int32_t>(std::count_if(order.begin(), order.end(), kept));
    const int32_t num_chosen = std::max({3, selection.token_budget / 16, num_kept});
    order.resize(static_cast<size_t>(std::min(num_chosen, num_blocks)));
    std::sort(order.begin(), order.end());
    std::vector<int32_t>& positions = result.positions.emplace_back();
    for (const int32_t block : order) {
      for (int32_t t = 16 * block; t < std::min(16 * block + 16, context); ++t) {
        positions.push_back(t);
      }
    }
  }
  return result;
}

void ReferenceModel::RunAttention(const ReferenceStep& step, size_t layer_index,
                                  size_t first_needed, ReferenceSequence* sequence,
                                  std::vector<Vector>* hidden, ReferenceResult* result) const {
  const Layer& layer = layers_[layer_index];
  const AttentionKind kind = step.kinds[layer_index];
  Vector& keys = sequence->keys[layer_index];
  Vector& values = sequence->values[layer_index];
  std::vector<Vector> queries;
  for (size_t t = 0; t < hidden->size(); ++t) {
    const int32_t position = sequence->num_tokens + static_cast<int32_t>(t);
    const Vector x = Norm((*hidden)[t], layer.attention_norm);
    Vector key = Multiply(layer.key, x);
    const Vector value = Multiply(layer.value, x);
    Rotate(position, &key);
    keys.insert(keys.end(), key.begin(), key.end());
    values.insert(values.end(), value.begin(), value.end());
    queries.push_back(t >= first_needed ? Multiply(layer.query, x) : Vector());
    Rotate(position, &queries.back());
  }
  const std::vector<std::vector<int32_t>>* positions = nullptr;
  if (kind == AttentionKind::kQuest) {
    result->selections.push_back(ChooseBlocks(queries.back(), keys, step.selection));
    positions = step.positions ? step.positions : &result->selections.back().positions;
  }
  if (kind == AttentionKind::kSparse) {
    positions = step.positions ? step.positions : &result->selections.back().positions;
  }
  for (size_t t = first_needed; t < hidden->size(); ++t) {
    std::vector<Vector> scores;
    const Vector attended =
        Attend(queries[t], keys, values, sequence->num_tokens + static_cast<int32_t>(t), positions,
               kind == AttentionKind::kSelect ? &scores : nullptr);
    if (kind == AttentionKind::kSelect) {
      result->selections.push_back(Select(scores, step.selection));
    }
    const Vector output = Multiply(layer.output, attended);
    for (size_t i = 0; i < output.size(); ++i) (*hidden)[t][i] += output[i];
  }
}

void ReferenceModel::RunMlp(const Layer& layer, Vector* hidden) const {
  const Vector x = Norm(*hidden, layer.mlp_norm);
  Vector gate = Multiply(layer.gate, x);
  const Vector up = Multiply(layer.up, x);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
  const Vector down = Multiply(layer.down, gate);
  for (size_t i = 0; i < down.size(); ++i) (*hidden)[i] += down[i];
}

ReferenceResult ReferenceModel::Run(const ReferenceStep& step, ReferenceSequence* sequence) const {
  ReferenceResult result;
  std::vector<Vector> hidden;
  for (const int32_t id : step.token_ids) {
    const double* row = embedding_.elements.data() + id * embedding_.cols;
    hidden.emplace_back(row, row + embedding_.cols);
  }
  sequence->keys.resize(layers_.size());
  sequence->values.resize(layers_.size());
  for (size_t layer = 0; layer < step.kinds.size(); ++layer) {
    // In the last layer only the last token's output matters.
    const size_t first_needed = layer + 1 == step.kinds.size() ? hidden.size() - 1 : 0;
    if (step.attention) RunAttention(step, layer, first_needed, sequence, &hidden, &result);
    for (size_t t = first_needed; step.mlp && t < hidden.size(); ++t) {
      RunMlp(layers_[layer], &hidden[t]);
    }
  }
  sequence->num_tokens += static_cast<int32_t>(hidden.size());
  result.logits = Multiply(lm_head_, Norm(hidden.back(), final_norm_));
  return result;
}

}  // namespace tidal::testing
