// What a Hugging Face `config.json` (and `generation_config.json`) says of a Llama-family model,
// validated.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/backend/model_shape.h"
#include "engine/backend/tensor_view.h"

namespace tidal {

struct ModelConfig {
  ModelShape shape;
  std::string architecture;                  // "LlamaForCausalLM" or "MistralForCausalLM"
  int32_t max_position_embeddings = 0;       // longest context the model was made for, tokens
  DType checkpoint_dtype = DType::kFloat32;  // as declared; the weight files decide
  std::vector<int32_t> bos_token_ids;        // none or one
  std::vector<int32_t> eos_token_ids;        // from generation_config.json where present

  // 0 = none. Otherwise a query attends this many positions, its own among them: contexts up to it
  // are unaffected, and the engine, which has no windowed attention, serves none beyond it.
  int32_t sliding_window = 0;
};

// Parses config.json's text. INVALID_ARGUMENT names the field, its value and what is supported;
// UNIMPLEMENTED names an architecture or feature that is not served. Where a field is absent,
// transformers' default for the architecture applies, except that sizes must be given, and that no
// token ids are assumed.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json);

// Replaces what generation_config.json's text overrides: eos_token_id, where it is given.
absl::Status ApplyGenerationConfig(std::string_view json, ModelConfig* config);

// Reads `directory`/config.json and, where it exists, generation_config.json. Errors also name the
// file.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory);

}  // namespace tidal
