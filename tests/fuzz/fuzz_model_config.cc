// Any bytes as config.json, and as generation_config.json: refused, or within every limit.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "engine/checkpoint/model_config.h"

namespace {

void Require(bool condition) {
  if (!condition) abort();
}

void RequireTokenIds(const tidal::ModelConfig& config) {
  for (const int32_t id : config.eos_token_ids) Require(id >= 0 && id < config.shape.vocab_size);
  for (const int32_t id : config.bos_token_ids) Require(id >= 0 && id < config.shape.vocab_size);
}

void RequireConsistent(const tidal::ModelConfig& config) {
  const tidal::ModelShape& shape = config.shape;
  Require(shape.num_layers > 0 && shape.hidden_size > 0 && shape.intermediate_size > 0);
  Require(shape.vocab_size > 0 && shape.num_query_heads > 0 && shape.num_kv_heads > 0);
  Require(shape.num_query_heads % shape.num_kv_heads == 0);
  Require(shape.head_dim > 0 && shape.head_dim % 2 == 0);
  Require(int64_t{shape.num_query_heads} * shape.head_dim <= INT32_MAX);
  Require(shape.rms_norm_eps > 0.0f);
  Require(shape.rope_inverse_frequencies.size() == static_cast<size_t>(shape.head_dim / 2));
  for (const float frequency : shape.rope_inverse_frequencies) {
    Require(std::isfinite(frequency) && frequency > 0.0f);
  }
  Require(config.max_position_embeddings > 0 && config.sliding_window >= 0);
  RequireTokenIds(config);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  const auto config = tidal::ParseModelConfig(text);
  if (config.ok()) RequireConsistent(*config);

  tidal::ModelConfig generating;
  generating.shape.vocab_size = 1000;
  if (tidal::ApplyGenerationConfig(text, &generating).ok()) RequireTokenIds(generating);
  return 0;
}
