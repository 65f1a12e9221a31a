#include "tools/model_shapes.h"

#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace tidal {
namespace {

struct NamedShape {
  const char* name;
  const char* config_json;
};

// Sizes as published; positions are extended so that long contexts can be timed, which changes no
// cost.
constexpr NamedShape kShapes[] = {
    {"llama-2-7b", R"({
       "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "hidden_act": "silu",
       "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
       "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
       "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 1048576})"},
    {"llama-3-8b", R"({
       "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "hidden_act": "silu",
       "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
       "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
       "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 1048576})"},
};

}  // namespace

std::vector<std::string> ModelShapeNames() {
  std::vector<std::string> names;
  for (const NamedShape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

absl::StatusOr<ModelConfig> FindModelShape(const std::string& name_or_path) {
  for (const NamedShape& shape : kShapes) {
    if (name_or_path == shape.name) return ParseModelConfig(shape.config_json);
  }
  if (!absl::EndsWith(name_or_path, ".json")) {
    return absl::InvalidArgumentError(absl::StrCat("shape: '", name_or_path, "' is none of ",
                                                   absl::StrJoin(ModelShapeNames(), ", "),
                                                   ", and no path of a config.json"));
  }
  std::ifstream file(name_or_path);
  if (!file) return absl::NotFoundError(absl::StrCat("shape: ", name_or_path, " cannot be read"));
  std::ostringstream text;
  text << file.rdbuf();
  return ParseModelConfig(text.str());
}

}  // namespace tidal
