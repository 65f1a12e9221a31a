#include "engine/checkpoint/model_config.h"

#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/checkpoint/json_fields.h"
#include "engine/checkpoint/mapped_file.h"
#include "engine/checkpoint/rope.h"

namespace tidal {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxConfigSizeBytes = 4 << 20;

// Limits far above any published model, and low enough that no product of sizes overflows:
// query_size stays within int32_t, and the bytes of all weights within int64_t.
constexpr int32_t kMaxLayers = 1024;
constexpr int32_t kMaxHiddenSize = 1 << 18;
constexpr int32_t kMaxIntermediateSize = 1 << 20;
constexpr int32_t kMaxHeads = 2048;
constexpr int32_t kMaxHeadDim = 1024;
constexpr int32_t kMaxVocabSize = 1 << 24;
constexpr int32_t kMaxPositions = 1 << 27;
constexpr size_t kMaxEosTokenIds = 64;

constexpr char kLlama[] = "LlamaForCausalLM";
constexpr char kMistral[] = "MistralForCausalLM";

// transformers' defaults where a field is absent, as far as the architectures differ.
constexpr int32_t kMistralSlidingWindow = 4096;
constexpr int32_t kMistralKvHeads = 8;
constexpr int32_t kLlamaPositions = 2048;
constexpr int32_t kMistralPositions = 4096 * 32;

absl::StatusOr<std::string> ParseArchitecture(const JsonFields& fields) {
  const json* architectures = fields.Find("architectures");
  if (architectures == nullptr) {  // configurations made without a model name only their type
    TIDAL_ASSIGN_OR_RETURN(const std::string type, fields.String("model_type", ""));
    if (type == "llama") return std::string(kLlama);
    if (type == "mistral") return std::string(kMistral);
    if (type.empty()) return absl::InvalidArgumentError("architectures is missing");
    return absl::UnimplementedError(
        absl::StrCat("model_type is ", DescribeJson(type), "; supported: \"llama\", \"mistral\""));
  }
  if (!architectures->is_array() || architectures->size() != 1 ||
      !(*architectures)[0].is_string()) {
    return UnsupportedValue("architectures", *architectures, "a list of one name");
  }
  const std::string name = (*architectures)[0].get<std::string>();
  if (name == kLlama || name == kMistral) return name;
  return absl::UnimplementedError(absl::StrCat("architectures is ", DescribeJson(*architectures),
                                               "; supported: ", kLlama, ", ", kMistral));
}

absl::Status RefuseUnservedFeatures(const JsonFields& fields) {
  if (const json* quantization = fields.Find("quantization_config"); quantization != nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("quantization_config is ", DescribeJson(*quantization), "; supported: none"));
  }
  TIDAL_ASSIGN_OR_RETURN(const std::string activation, fields.String("hidden_act", "silu"));
  if (activation != "silu") {
    return absl::UnimplementedError(
        absl::StrCat("hidden_act is ", DescribeJson(activation), "; supported: \"silu\""));
  }
  return absl::OkStatus();
}

absl::Status ParseHeads(const JsonFields& fields, int32_t default_kv_heads, ModelShape* shape) {
  TIDAL_ASSIGN_OR_RETURN(shape->num_query_heads,
                         fields.Integer("num_attention_heads", 1, kMaxHeads));
  const bool kv_heads_follow = default_kv_heads == 0 || fields.Contains("num_key_value_heads");
  TIDAL_ASSIGN_OR_RETURN(
      shape->num_kv_heads,
      fields.Integer("num_key_value_heads", 1, kMaxHeads,
                     kv_heads_follow ? shape->num_query_heads : default_kv_heads));
  if (shape->num_query_heads % shape->num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "num_key_value_heads is ", shape->num_kv_heads,
        "; supported: divisors of num_attention_heads, which is ", shape->num_query_heads));
  }
  if (fields.Find("head_dim") == nullptr && shape->hidden_size % shape->num_query_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "hidden_size is ", shape->hidden_size, "; supported without head_dim: multiples of ",
        "num_attention_heads, which is ", shape->num_query_heads));
  }
  TIDAL_ASSIGN_OR_RETURN(
      shape->head_dim,
      fields.Integer("head_dim", 2, kMaxHeadDim, shape->hidden_size / shape->num_query_heads));
  // The fallback is checked here too.
  if (shape->head_dim % 2 != 0 || shape->head_dim < 2 || shape->head_dim > kMaxHeadDim) {
    return absl::InvalidArgumentError(absl::StrCat(
        "head_dim is ", shape->head_dim, "; supported: even numbers from 2 to ", kMaxHeadDim));
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelShape> ParseShape(const JsonFields& fields, int32_t default_kv_heads) {
  ModelShape shape;
  TIDAL_ASSIGN_OR_RETURN(shape.num_layers, fields.Integer("num_hidden_layers", 1, kMaxLayers));
  TIDAL_ASSIGN_OR_RETURN(shape.hidden_size, fields.Integer("hidden_size", 1, kMaxHiddenSize));
  TIDAL_ASSIGN_OR_RETURN(shape.intermediate_size,
                         fields.Integer("intermediate_size", 1, kMaxIntermediateSize));
  TIDAL_ASSIGN_OR_RETURN(shape.vocab_size, fields.Integer("vocab_size", 1, kMaxVocabSize));
  TIDAL_RETURN_IF_ERROR(ParseHeads(fields, default_kv_heads, &shape));
  // float32 has no use for less: x^2 + eps would not differ from x^2.
  TIDAL_ASSIGN_OR_RETURN(const double eps, fields.Number("rms_norm_eps", 1e-12, 1.0, 1e-6));
  shape.rms_norm_eps = static_cast<float>(eps);
  TIDAL_ASSIGN_OR_RETURN(shape.tied_embeddings, fields.Boolean("tie_word_embeddings", false));
  TIDAL_ASSIGN_OR_RETURN(shape.attention_qkv_bias, fields.Boolean("attention_bias", false));
  shape.attention_output_bias = shape.attention_qkv_bias;
  TIDAL_ASSIGN_OR_RETURN(shape.mlp_bias, fields.Boolean("mlp_bias", false));
  TIDAL_ASSIGN_OR_RETURN(const RopeConfig rope, ParseRopeConfig(fields));
  shape.rope_inverse_frequencies = RopeInverseFrequencies(rope, shape.head_dim);
  return shape;
}

absl::StatusOr<DType> ParseDType(const JsonFields& fields) {
  const absl::string_view name = fields.Find("dtype") != nullptr ? "dtype" : "torch_dtype";
  TIDAL_ASSIGN_OR_RETURN(const std::string dtype, fields.String(name, "float32"));
  if (dtype == "float32") return DType::kFloat32;
  if (dtype == "float16") return DType::kFloat16;
  if (dtype == "bfloat16") return DType::kBFloat16;
  return absl::UnimplementedError(
      absl::StrCat(name, " is ", DescribeJson(dtype), "; supported: float32, float16, bfloat16"));
}

// Whether `sliding_window` applies to any layer. `layer_types` and `use_sliding_window` can say
// that it does not.
absl::StatusOr<bool> HasWindowedLayers(const JsonFields& fields, int32_t num_layers) {
  TIDAL_ASSIGN_OR_RETURN(const bool enabled, fields.Boolean("use_sliding_window", true));
  const json* types = fields.Find("layer_types");
  if (types == nullptr) return enabled;
  if (!types->is_array() || types->size() != static_cast<size_t>(num_layers)) {
    return UnsupportedValue(
        "layer_types", *types,
        absl::StrCat("a list of num_hidden_layers names, which is ", num_layers));
  }
  bool windowed = false;
  for (const json& type : *types) {
    if (type == "sliding_attention") {
      windowed = true;
    } else if (type != "full_attention") {
      return absl::UnimplementedError(
          absl::StrCat("layer_types has ", DescribeJson(type),
                       "; supported: \"full_attention\", \"sliding_attention\""));
    }
  }
  return enabled && windowed;
}

absl::StatusOr<int32_t> ParseSlidingWindow(const JsonFields& fields, int32_t num_layers,
                                           int32_t default_window) {
  TIDAL_ASSIGN_OR_RETURN(const bool windowed, HasWindowedLayers(fields, num_layers));
  const int32_t fallback = fields.Contains("sliding_window") ? 0 : default_window;
  TIDAL_ASSIGN_OR_RETURN(const int32_t window,
                         fields.Integer("sliding_window", 1, kMaxPositions, fallback));
  return windowed ? window : 0;
}

// An id, a list of at most `max_ids`, or null.
absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const JsonFields& fields, absl::string_view name,
                                                   int32_t vocab_size, size_t max_ids) {
  std::vector<int32_t> ids;
  const json* value = fields.Find(name);
  if (value == nullptr) return ids;
  const json list = value->is_array() ? *value : json::array({*value});
  if (list.size() > max_ids) {
    return UnsupportedValue(name, *value, absl::StrCat("at most ", max_ids, " ids"));
  }
  for (const json& entry : list) {
    TIDAL_ASSIGN_OR_RETURN(const int64_t id, IntegerFromJson(name, entry, 0, vocab_size - 1));
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

absl::Status WithPath(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

std::string_view Text(const MappedFile& file) {
  return {file.contents().data(), file.contents().size()};
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view text) {
  TIDAL_ASSIGN_OR_RETURN(const json parsed, ParseJsonObject(text));
  const JsonFields fields(parsed);
  ModelConfig config;
  TIDAL_ASSIGN_OR_RETURN(config.architecture, ParseArchitecture(fields));
  TIDAL_RETURN_IF_ERROR(RefuseUnservedFeatures(fields));
  const bool is_mistral = config.architecture == kMistral;
  TIDAL_ASSIGN_OR_RETURN(config.shape, ParseShape(fields, is_mistral ? kMistralKvHeads : 0));
  TIDAL_ASSIGN_OR_RETURN(config.max_position_embeddings,
                         fields.Integer("max_position_embeddings", 1, kMaxPositions,
                                        is_mistral ? kMistralPositions : kLlamaPositions));
  TIDAL_ASSIGN_OR_RETURN(config.checkpoint_dtype, ParseDType(fields));
  TIDAL_ASSIGN_OR_RETURN(
      config.sliding_window,
      ParseSlidingWindow(fields, config.shape.num_layers, is_mistral ? kMistralSlidingWindow : 0));
  TIDAL_ASSIGN_OR_RETURN(config.bos_token_ids,
                         ParseTokenIds(fields, "bos_token_id", config.shape.vocab_size, 1));
  TIDAL_ASSIGN_OR_RETURN(
      config.eos_token_ids,
      ParseTokenIds(fields, "eos_token_id", config.shape.vocab_size, kMaxEosTokenIds));
  return config;
}

absl::Status ApplyGenerationConfig(std::string_view text, ModelConfig* config) {
  TIDAL_ASSIGN_OR_RETURN(const json parsed, ParseJsonObject(text));
  const JsonFields fields(parsed);
  if (fields.Find("eos_token_id") == nullptr) return absl::OkStatus();
  TIDAL_ASSIGN_OR_RETURN(
      config->eos_token_ids,
      ParseTokenIds(fields, "eos_token_id", config->shape.vocab_size, kMaxEosTokenIds));
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/config.json");
  TIDAL_ASSIGN_OR_RETURN(const auto file, MappedFile::Open(path, kMaxConfigSizeBytes));
  absl::StatusOr<ModelConfig> config = ParseModelConfig(Text(*file));
  if (!config.ok()) return WithPath(path, config.status());

  const std::string generation_path = absl::StrCat(directory, "/generation_config.json");
  const auto generation_file = MappedFile::Open(generation_path, kMaxConfigSizeBytes);
  if (absl::IsNotFound(generation_file.status())) return config;
  TIDAL_RETURN_IF_ERROR(generation_file.status());
  const absl::Status applied = ApplyGenerationConfig(Text(**generation_file), &*config);
  if (!applied.ok()) return WithPath(generation_path, applied);
  return config;
}

}  // namespace tidal
