#include "engine/checkpoint/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <tuple>

#include "tests/engine/checkpoint/status_expectations.h"
#include "tests/engine/checkpoint/temp_directory.h"

namespace tidal {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::IsEmpty;

// A config.json of Llama-3's form; `changes` replaces fields.
json LlamaConfig(const json& changes = json::object()) {
  json config = {{"architectures", {"LlamaForCausalLM"}},
                 {"hidden_size", 4096},
                 {"intermediate_size", 14336},
                 {"num_hidden_layers", 32},
                 {"num_attention_heads", 32},
                 {"num_key_value_heads", 8},
                 {"vocab_size", 128256},
                 {"max_position_embeddings", 8192},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 500000.0},
                 {"hidden_act", "silu"},
                 {"torch_dtype", "bfloat16"},
                 {"bos_token_id", 128000},
                 {"eos_token_id", 128001}};
  config.update(changes);
  return config;
}

json MistralConfig(const json& changes = json::object()) {
  json config = LlamaConfig({{"architectures", {"MistralForCausalLM"}}});
  config.update(changes);
  return config;
}

json Without(json config, const std::string& field) {
  config.erase(field);
  return config;
}

absl::StatusOr<ModelConfig> Parse(const json& config) { return ParseModelConfig(config.dump()); }

absl::Status ParseError(const json& changes) { return Parse(LlamaConfig(changes)).status(); }

void ExpectUnimplemented(const absl::Status& status, const std::vector<std::string>& parts) {
  ExpectError(status, absl::StatusCode::kUnimplemented, parts);
}

TEST(ModelConfigTest, ReadsEveryFieldOfALlamaConfig) {
  const auto config = Parse(LlamaConfig());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "LlamaForCausalLM");
  EXPECT_EQ(config->shape.num_layers, 32);
  EXPECT_EQ(config->shape.hidden_size, 4096);
  EXPECT_EQ(config->shape.intermediate_size, 14336);
  EXPECT_EQ(config->shape.num_query_heads, 32);
  EXPECT_EQ(config->shape.num_kv_heads, 8);
  EXPECT_EQ(config->shape.head_dim, 128);
  EXPECT_EQ(config->shape.vocab_size, 128256);
  EXPECT_EQ(config->shape.rms_norm_eps, 1e-5f);
  EXPECT_FALSE(config->shape.tied_embeddings);
  EXPECT_FALSE(config->shape.attention_qkv_bias);
  EXPECT_FALSE(config->shape.attention_output_bias);
  EXPECT_FALSE(config->shape.mlp_bias);
  EXPECT_EQ(config->shape.rope_inverse_frequencies.size(), 64u);
  EXPECT_EQ(config->max_position_embeddings, 8192);
  EXPECT_EQ(config->checkpoint_dtype, DType::kBFloat16);
  EXPECT_THAT(config->bos_token_ids, ElementsAre(128000));
  EXPECT_THAT(config->eos_token_ids, ElementsAre(128001));
  EXPECT_EQ(config->sliding_window, 0);
}

TEST(ModelConfigTest, ReadsBiasesTiedEmbeddingsAndExplicitHeadDim) {
  const auto config = Parse(LlamaConfig({{"attention_bias", true},
                                         {"mlp_bias", true},
                                         {"tie_word_embeddings", true},
                                         {"head_dim", 64}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->shape.attention_qkv_bias);
  EXPECT_TRUE(config->shape.attention_output_bias);
  EXPECT_TRUE(config->shape.mlp_bias);
  EXPECT_TRUE(config->shape.tied_embeddings);
  EXPECT_EQ(config->shape.head_dim, 64);
  EXPECT_EQ(config->shape.rope_inverse_frequencies.size(), 32u);
}

TEST(ModelConfigTest, ExplicitHeadDimNeedNotDivideHiddenSize) {
  const auto config = Parse(LlamaConfig({{"hidden_size", 4097}, {"head_dim", 128}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->shape.query_size(), 4096);
}

TEST(ModelConfigTest, KvHeadsFollowQueryHeadsWhereNotGiven) {
  for (const json& config : {Without(LlamaConfig(), "num_key_value_heads"),
                             LlamaConfig({{"num_key_value_heads", nullptr}}),
                             MistralConfig({{"num_key_value_heads", nullptr}})}) {
    const auto parsed = Parse(config);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->shape.num_kv_heads, 32);
  }
}

TEST(ModelConfigTest, MistralHasItsOwnDefaults) {
  json config = MistralConfig();
  for (const char* field : {"num_key_value_heads", "sliding_window", "max_position_embeddings"}) {
    config.erase(field);
  }
  const auto parsed = Parse(config);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->shape.num_kv_heads, 8);
  EXPECT_EQ(parsed->sliding_window, 4096);
  EXPECT_EQ(parsed->max_position_embeddings, 131072);
}

TEST(ModelConfigTest, LlamaDefaultsAreTransformers) {
  json config = LlamaConfig();
  for (const char* field :
       {"rms_norm_eps", "max_position_embeddings", "hidden_act", "torch_dtype"}) {
    config.erase(field);
  }
  const auto parsed = Parse(config);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->shape.rms_norm_eps, 1e-6f);
  EXPECT_EQ(parsed->max_position_embeddings, 2048);
  EXPECT_EQ(parsed->checkpoint_dtype, DType::kFloat32);
}

TEST(ModelConfigTest, ArchitectureFollowsModelTypeWhereNotNamed) {
  for (const auto& [type, architecture] :
       {std::pair("llama", "LlamaForCausalLM"), std::pair("mistral", "MistralForCausalLM")}) {
    const auto parsed = Parse(LlamaConfig({{"architectures", nullptr}, {"model_type", type}}));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->architecture, architecture);
  }
  ExpectInvalid(ParseError({{"architectures", nullptr}}), {"architectures is missing"});
  ExpectUnimplemented(ParseError({{"architectures", nullptr}, {"model_type", "gpt2"}}),
                      {"model_type", "gpt2", "llama"});
}

TEST(ModelConfigTest, ReadsSlidingWindow) {
  const auto window = [](const json& config) {
    const auto parsed = Parse(config);
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    return parsed.ok() ? parsed->sliding_window : -1;
  };
  json full = json::array();
  for (int i = 0; i < 32; ++i) full.push_back("full_attention");
  json mixed = full;
  mixed[5] = "sliding_attention";
  EXPECT_EQ(window(MistralConfig({{"sliding_window", 1024}})), 1024);
  EXPECT_EQ(window(MistralConfig({{"sliding_window", nullptr}})), 0);
  EXPECT_EQ(window(LlamaConfig({{"sliding_window", 1024}})), 1024);
  EXPECT_EQ(window(MistralConfig({{"sliding_window", 9}, {"use_sliding_window", false}})), 0);
  EXPECT_EQ(window(MistralConfig({{"sliding_window", 9}, {"use_sliding_window", true}})), 9);
  EXPECT_EQ(window(MistralConfig({{"sliding_window", 9}, {"layer_types", full}})), 0);
  EXPECT_EQ(window(MistralConfig({{"sliding_window", 9}, {"layer_types", mixed}})), 9);
}

TEST(ModelConfigTest, RefusesLayerTypesOfOtherKindsOrNumber) {
  json types = json::array();
  for (int i = 0; i < 32; ++i) types.push_back("full_attention");
  types[3] = "chunked_attention";
  ExpectUnimplemented(ParseError({{"layer_types", types}}), {"layer_types", "chunked_attention"});
  ExpectInvalid(ParseError({{"layer_types", {"full_attention"}}}), {"layer_types", "32"});
  ExpectInvalid(ParseError({{"layer_types", "full_attention"}}), {"layer_types"});
}

TEST(ModelConfigTest, ReadsTokenIdsAsNumberListOrNull) {
  const auto parsed = Parse(LlamaConfig({{"bos_token_id", {5}}, {"eos_token_id", {7, 8, 9}}}));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(parsed->bos_token_ids, ElementsAre(5));
  EXPECT_THAT(parsed->eos_token_ids, ElementsAre(7, 8, 9));

  const auto none = Parse(Without(LlamaConfig({{"eos_token_id", nullptr}}), "bos_token_id"));
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_THAT(none->bos_token_ids, IsEmpty());
  EXPECT_THAT(none->eos_token_ids, IsEmpty());
}

TEST(ModelConfigTest, RefusesTokenIdsOutsideTheVocabulary) {
  ExpectInvalid(ParseError({{"eos_token_id", 128256}}), {"eos_token_id", "128256", "128255"});
  ExpectInvalid(ParseError({{"eos_token_id", {1, -1}}}), {"eos_token_id", "-1"});
  ExpectInvalid(ParseError({{"bos_token_id", "1"}}), {"bos_token_id", "\"1\""});
  ExpectInvalid(ParseError({{"bos_token_id", {1, 2}}}), {"bos_token_id", "[1,2]", "at most 1"});
  ExpectInvalid(ParseError({{"eos_token_id", json(std::vector<int>(65, 1))}}),
                {"eos_token_id", "at most 64"});
}

TEST(ModelConfigTest, ReadsDTypeInBothSpellings) {
  EXPECT_EQ(Parse(LlamaConfig({{"torch_dtype", "float16"}}))->checkpoint_dtype, DType::kFloat16);
  EXPECT_EQ(Parse(LlamaConfig({{"dtype", "float32"}}))->checkpoint_dtype, DType::kFloat32);
  ExpectUnimplemented(ParseError({{"torch_dtype", "float8_e4m3fn"}}),
                      {"torch_dtype", "float8_e4m3fn", "bfloat16"});
  ExpectInvalid(ParseError({{"dtype", 16}}), {"dtype", "16"});
}

// Each required size, with values just outside its limits and of wrong types.
class ModelConfigIntegerTest : public testing::TestWithParam<std::tuple<const char*, int64_t>> {};

TEST_P(ModelConfigIntegerTest, RefusesValuesOutOfRangeAndOfOtherTypes) {
  const auto [field, max] = GetParam();
  for (const json& value :
       {json(0), json(-1), json(max + 1), json(INT64_MIN), json(UINT64_MAX), json(4.5), json(1e300),
        json("4"), json(true), json::array({4}), json::object()}) {
    const absl::Status status = ParseError({{field, value}});
    ExpectInvalid(status, {std::string(field) + " is " + value.dump(), "supported: integers from ",
                           std::to_string(max)});
  }
}

INSTANTIATE_TEST_SUITE_P(
    AllSizes, ModelConfigIntegerTest,
    testing::Values(std::tuple("hidden_size", 1 << 18), std::tuple("intermediate_size", 1 << 20),
                    std::tuple("num_hidden_layers", 1024), std::tuple("num_attention_heads", 2048),
                    std::tuple("num_key_value_heads", 2048), std::tuple("head_dim", 1024),
                    std::tuple("vocab_size", 1 << 24),
                    std::tuple("max_position_embeddings", 1 << 27),
                    std::tuple("sliding_window", 1 << 27)),
    [](const auto& test) { return std::string(std::get<0>(test.param)); });

TEST(ModelConfigTest, RequiresTheSizes) {
  for (const char* field : {"hidden_size", "intermediate_size", "num_hidden_layers",
                            "num_attention_heads", "vocab_size"}) {
    ExpectInvalid(Parse(Without(LlamaConfig(), field)).status(),
                  {std::string(field) + " is missing"});
  }
}

TEST(ModelConfigTest, LargestSizesDoNotOverflow) {
  const auto parsed = Parse(LlamaConfig({{"hidden_size", 1 << 18},
                                         {"intermediate_size", 1 << 20},
                                         {"num_hidden_layers", 1024},
                                         {"num_attention_heads", 2048},
                                         {"num_key_value_heads", 2048},
                                         {"head_dim", 1024},
                                         {"vocab_size", 1 << 24}}));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->shape.query_size(), 1 << 21);
}

TEST(ModelConfigTest, RefusesHeadsThatDoNotDivide) {
  ExpectInvalid(ParseError({{"num_key_value_heads", 5}}), {"num_key_value_heads is 5", "32"});
  ExpectInvalid(ParseError({{"num_key_value_heads", 64}}), {"num_key_value_heads is 64", "32"});
  ExpectInvalid(ParseError({{"hidden_size", 4097}}), {"hidden_size is 4097", "32"});
}

TEST(ModelConfigTest, RefusesHeadDimThatIsOddOrTooSmallWhetherGivenOrDerived) {
  ExpectInvalid(ParseError({{"head_dim", 127}}), {"head_dim is 127", "even"});
  ExpectInvalid(ParseError({{"hidden_size", 96}}), {"head_dim is 3", "even"});
  ExpectInvalid(ParseError({{"hidden_size", 32}}), {"head_dim is 1", "even"});
  ExpectInvalid(ParseError({{"hidden_size", 16}}), {"hidden_size is 16"});
  ExpectInvalid(ParseError({{"hidden_size", 1 << 18}}), {"head_dim is 8192", "1024"});
}

TEST(ModelConfigTest, RefusesEpsilonThatIsNotPositive) {
  for (const json& value : {json(0), json(-1e-5), json(1e-300), json(2.0), json("1e-5")}) {
    ExpectInvalid(ParseError({{"rms_norm_eps", value}}), {"rms_norm_eps is "});
  }
}

TEST(ModelConfigTest, RefusesFlagsThatAreNotBoolean) {
  for (const char* field :
       {"tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"}) {
    ExpectInvalid(ParseError({{field, 1}}), {std::string(field) + " is 1", "true, false"});
  }
}

TEST(ModelConfigTest, RefusesArchitecturesAndFeaturesThatAreNotServed) {
  ExpectUnimplemented(ParseError({{"architectures", {"Qwen2ForCausalLM"}}}),
                      {"Qwen2ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"});
  ExpectInvalid(ParseError({{"architectures", "LlamaForCausalLM"}}), {"architectures"});
  ExpectInvalid(ParseError({{"architectures", json::array()}}), {"architectures"});
  ExpectInvalid(ParseError({{"architectures", {1}}}), {"architectures"});
  ExpectUnimplemented(ParseError({{"quantization_config", {{"quant_method", "awq"}}}}),
                      {"quantization_config", "awq"});
  ExpectUnimplemented(ParseError({{"hidden_act", "gelu"}}), {"hidden_act", "gelu", "silu"});
}

TEST(ModelConfigTest, RefusesTextThatIsNotAnObject) {
  for (const char* text : {"", "   ", "{", "{]", "null", "3", "[]", "\"x\"", "{}{}", "{\"a\":NaN}",
                           "{\"a\":1e999}", "{\"a\":\"\xff\"}", "{\"a\":01}"}) {
    EXPECT_EQ(ParseModelConfig(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(ModelConfigTest, RefusesDeepNestingWithoutExhaustingTheStack) {
  for (const char* opening : {"[", "{\"a\":", "{\"rope_scaling\":["}) {
    std::string text;
    for (int i = 0; i < 300000; ++i) text += opening;
    ExpectInvalid(ParseModelConfig(text).status(), {"nested deeper than 32"});
  }
  // Brackets inside strings do not count.
  const std::string brackets(1000, '[');
  EXPECT_TRUE(Parse(LlamaConfig({{"name", brackets + "\\\"" + brackets}})).ok());
}

TEST(ModelConfigTest, NoMutatedConfigCrashes) {
  const std::string valid = LlamaConfig({{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}},
                                         {"layer_types", nullptr}})
                                .dump();
  uint32_t state = 1;
  const auto random = [&state](uint32_t bound) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % bound;
  };
  int num_refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = valid;
    for (uint32_t change = 0; change <= random(3); ++change) {
      const size_t at = random(static_cast<uint32_t>(text.size()));
      constexpr std::string_view kBytes = "0129-+.eE{}[]\",:nulltrue\xc3\x28\0";
      if (random(2) == 0) {
        text[at] = kBytes[random(static_cast<uint32_t>(kBytes.size()))];
      } else {
        text.erase(at, 1 + random(8));
      }
    }
    const auto parsed = ParseModelConfig(text);
    if (parsed.ok()) continue;
    ++num_refused;
    EXPECT_FALSE(parsed.status().message().empty());
  }
  EXPECT_GT(num_refused, 1000);
}

TEST(LoadModelConfigTest, GenerationConfigOverridesEndOfSequence) {
  const TempDirectory directory;
  directory.Write("config.json", LlamaConfig().dump());
  directory.Write("generation_config.json", R"({"eos_token_id": [128001, 128009], "top_p": 0.9})");
  const auto config = LoadModelConfig(directory.path());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->eos_token_ids, ElementsAre(128001, 128009));
}

TEST(LoadModelConfigTest, KeepsEndOfSequenceWhereGenerationConfigIsAbsentOrSilent) {
  const TempDirectory directory;
  directory.Write("config.json", LlamaConfig().dump());
  EXPECT_THAT(LoadModelConfig(directory.path())->eos_token_ids, ElementsAre(128001));
  directory.Write("generation_config.json", "{}");
  EXPECT_THAT(LoadModelConfig(directory.path())->eos_token_ids, ElementsAre(128001));
}

TEST(LoadModelConfigTest, ErrorsNameTheFile) {
  const TempDirectory directory;
  ExpectError(LoadModelConfig(directory.path()).status(), absl::StatusCode::kNotFound,
              {directory.path() + "/config.json"});
  directory.Write("config.json", "");
  ExpectInvalid(LoadModelConfig(directory.path()).status(), {directory.path() + "/config.json"});
  directory.Write("config.json", LlamaConfig().dump());
  directory.Write("generation_config.json", R"({"eos_token_id": 128256})");
  ExpectInvalid(LoadModelConfig(directory.path()).status(),
                {"/generation_config.json", "eos_token_id is 128256"});
}

TEST(LoadModelConfigTest, RefusesDirectoryInPlaceOfFile) {
  const TempDirectory directory;
  std::filesystem::create_directory(directory.path() + "/config.json");
  ExpectInvalid(LoadModelConfig(directory.path()).status(), {"/config.json", "not a regular file"});
}

TEST(LoadModelConfigTest, RefusesFileOverTheSizeLimit) {
  const TempDirectory directory;
  const std::string path = directory.Write("config.json", LlamaConfig().dump());
  std::filesystem::resize_file(path, (4 << 20) + 1);
  ExpectInvalid(LoadModelConfig(directory.path()).status(), {path, "4194305", "4194304"});
}

}  // namespace
}  // namespace tidal
