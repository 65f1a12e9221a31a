#include "engine/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/checkpoint/safetensors_header.h"
#include "tests/engine/checkpoint/safetensors_builder.h"
#include "tests/engine/checkpoint/status_expectations.h"
#include "tests/engine/checkpoint/temp_directory.h"

namespace tidal {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr char kGoldenDirectory[] = TIDAL_SOURCE_DIR "/tests/golden/checkpoints/";

// Two layers, every extent different, with all biases.
ModelConfig SmallConfig() {
  ModelConfig config;
  config.shape.num_layers = 2;
  config.shape.hidden_size = 6;
  config.shape.intermediate_size = 10;
  config.shape.num_query_heads = 4;
  config.shape.num_kv_heads = 2;
  config.shape.head_dim = 2;
  config.shape.vocab_size = 9;
  config.shape.attention_qkv_bias = true;
  config.shape.attention_output_bias = true;
  config.shape.mlp_bias = true;
  return config;
}

using TensorShapes = std::map<std::string, std::vector<int64_t>>;

// What a checkpoint of SmallConfig holds, as transformers names it.
TensorShapes SmallTensors() {
  TensorShapes tensors = {{"model.embed_tokens.weight", {9, 6}},
                          {"model.norm.weight", {6}},
                          {"lm_head.weight", {9, 6}}};
  for (const std::string prefix : {"model.layers.0.", "model.layers.1."}) {
    tensors[prefix + "input_layernorm.weight"] = {6};
    tensors[prefix + "post_attention_layernorm.weight"] = {6};
    tensors[prefix + "self_attn.q_proj.weight"] = {8, 6};
    tensors[prefix + "self_attn.k_proj.weight"] = {4, 6};
    tensors[prefix + "self_attn.v_proj.weight"] = {4, 6};
    tensors[prefix + "self_attn.o_proj.weight"] = {6, 8};
    tensors[prefix + "self_attn.q_proj.bias"] = {8};
    tensors[prefix + "self_attn.k_proj.bias"] = {4};
    tensors[prefix + "self_attn.v_proj.bias"] = {4};
    tensors[prefix + "self_attn.o_proj.bias"] = {6};
    tensors[prefix + "mlp.gate_proj.weight"] = {10, 6};
    tensors[prefix + "mlp.up_proj.weight"] = {10, 6};
    tensors[prefix + "mlp.down_proj.weight"] = {6, 10};
    tensors[prefix + "mlp.gate_proj.bias"] = {10};
    tensors[prefix + "mlp.up_proj.bias"] = {10};
    tensors[prefix + "mlp.down_proj.bias"] = {6};
  }
  return tensors;
}

int64_t NumElements(const std::vector<int64_t>& shape) {
  int64_t product = 1;
  for (const int64_t extent : shape) product *= extent;
  return product;
}

// A file in which each float32 tensor repeats the place of its name in the order of names.
SafetensorsBuilder NumberedFile(const TensorShapes& tensors) {
  SafetensorsBuilder builder;
  float number = 0;
  for (const auto& [name, shape] : tensors) {
    const std::vector<float> values(static_cast<size_t>(NumElements(shape)), number++);
    builder.Add(name, "F32", shape,
                {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)});
  }
  return builder;
}

float LastValue(const TensorView& view) {
  float value = -1;
  std::memcpy(&value, static_cast<const char*>(view.bytes) + view.size_bytes() - 4, 4);
  return value;
}

// Every view of the model with the tensor's name.
std::map<std::string, TensorView> NamedViews(const ModelWeights& weights) {
  std::map<std::string, TensorView> views = {{"model.embed_tokens.weight", weights.embedding},
                                             {"model.norm.weight", weights.final_norm},
                                             {"lm_head.weight", weights.lm_head}};
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const LayerWeights& layer = weights.layers[i];
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    views[prefix + "input_layernorm.weight"] = layer.attention_norm;
    views[prefix + "post_attention_layernorm.weight"] = layer.mlp_norm;
    views[prefix + "self_attn.q_proj.weight"] = layer.query_projection;
    views[prefix + "self_attn.k_proj.weight"] = layer.key_projection;
    views[prefix + "self_attn.v_proj.weight"] = layer.value_projection;
    views[prefix + "self_attn.o_proj.weight"] = layer.output_projection;
    views[prefix + "self_attn.q_proj.bias"] = layer.query_bias;
    views[prefix + "self_attn.k_proj.bias"] = layer.key_bias;
    views[prefix + "self_attn.v_proj.bias"] = layer.value_bias;
    views[prefix + "self_attn.o_proj.bias"] = layer.output_bias;
    views[prefix + "mlp.gate_proj.weight"] = layer.gate_projection;
    views[prefix + "mlp.up_proj.weight"] = layer.up_projection;
    views[prefix + "mlp.down_proj.weight"] = layer.down_projection;
    views[prefix + "mlp.gate_proj.bias"] = layer.gate_bias;
    views[prefix + "mlp.up_proj.bias"] = layer.up_bias;
    views[prefix + "mlp.down_proj.bias"] = layer.down_bias;
  }
  return views;
}

class CheckpointTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Checkpoint>> OpenSingle(
      const TensorShapes& tensors, const ModelConfig& config = SmallConfig()) {
    directory_.Write("model.safetensors", NumberedFile(tensors).Build());
    return OpenCheckpoint(directory_.path(), config);
  }

  // Two shards, the tensors dealt in turn, and the index, which `alter` may change.
  absl::StatusOr<std::unique_ptr<Checkpoint>> OpenSharded(const std::function<void(json&)>& alter =
                                                              [](json&) {}) {
    TensorShapes shards[2];
    json index = {{"metadata", {{"total_size", 1}}}, {"weight_map", json::object()}};
    size_t i = 0;
    for (const auto& [name, shape] : SmallTensors()) {
      shards[i % 2][name] = shape;
      index["weight_map"][name] = "part-" + std::to_string(i++ % 2) + ".safetensors";
    }
    alter(index);
    for (int shard = 0; shard < 2; ++shard) {
      directory_.Write("part-" + std::to_string(shard) + ".safetensors",
                       NumberedFile(shards[shard]).Build());
    }
    directory_.Write("model.safetensors.index.json", index.dump());
    return OpenCheckpoint(directory_.path(), SmallConfig());
  }

  TempDirectory directory_;
};

TEST_F(CheckpointTest, EveryTensorGoesToItsPlace) {
  const auto checkpoint = OpenSingle(SmallTensors());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto views = NamedViews((*checkpoint)->weights());
  ASSERT_EQ(views.size(), SmallTensors().size());
  float number = 0;
  int64_t size_bytes = 0;
  for (const auto& [name, shape] : SmallTensors()) {
    const TensorView& view = views.at(name);
    ASSERT_TRUE(view.present()) << name;
    EXPECT_EQ(view.rows, shape.size() == 1 ? 1 : shape[0]) << name;
    EXPECT_EQ(view.cols, shape.back()) << name;
    EXPECT_EQ(LastValue(view), number++) << name;
    size_bytes += NumElements(shape) * 4;
  }
  EXPECT_EQ((*checkpoint)->size_bytes(), size_bytes);
}

TEST_F(CheckpointTest, LeavesBiasesAbsentWithoutTheirFlags) {
  ModelConfig config = SmallConfig();
  config.shape.attention_qkv_bias = false;
  config.shape.attention_output_bias = false;
  config.shape.mlp_bias = false;
  const auto checkpoint = OpenSingle(SmallTensors(), config);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const auto& [name, view] : NamedViews((*checkpoint)->weights())) {
    EXPECT_EQ(view.present(), name.ends_with(".weight")) << name;
  }
}

TEST_F(CheckpointTest, TiedHeadIsAbsentEvenWhereStored) {
  ModelConfig config = SmallConfig();
  config.shape.tied_embeddings = true;
  const auto stored = OpenSingle(SmallTensors(), config);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_FALSE((*stored)->weights().lm_head.present());

  TensorShapes tensors = SmallTensors();
  tensors.erase("lm_head.weight");
  const auto absent = OpenSingle(tensors, config);
  ASSERT_TRUE(absent.ok()) << absent.status();
  EXPECT_EQ((*absent)->size_bytes(), (*stored)->size_bytes());
}

TEST_F(CheckpointTest, EveryMissingTensorIsNamed) {
  for (const auto& [name, shape] : SmallTensors()) {
    TensorShapes tensors = SmallTensors();
    tensors.erase(name);
    ExpectError(OpenSingle(tensors).status(), absl::StatusCode::kNotFound,
                {"/model.safetensors", name});
  }
}

TEST_F(CheckpointTest, EveryWrongShapeIsNamedWithBothShapes) {
  for (const auto& [name, shape] : SmallTensors()) {
    TensorShapes tensors = SmallTensors();
    std::vector<int64_t> wrong = shape;
    wrong.back() += 1;
    tensors[name] = wrong;
    ExpectInvalid(OpenSingle(tensors).status(),
                  {"/model.safetensors", name, "shape is " + DescribeShape(wrong),
                   "asks for " + DescribeShape(shape)});
  }
}

TEST_F(CheckpointTest, RefusesShapesOfOtherRankOrTransposed) {
  TensorShapes tensors = SmallTensors();
  tensors["model.layers.1.mlp.down_proj.weight"] = {10, 6};
  ExpectInvalid(OpenSingle(tensors).status(),
                {"model.layers.1.mlp.down_proj.weight", "[10, 6]", "[6, 10]"});
  tensors = SmallTensors();
  tensors["model.norm.weight"] = {1, 6};
  ExpectInvalid(OpenSingle(tensors).status(), {"model.norm.weight", "[1, 6]", "[6]"});
}

TEST_F(CheckpointTest, ReadsADTypeForEachTensor) {
  SafetensorsBuilder builder = NumberedFile(SmallTensors());
  const std::string norm(12, '\0');
  builder.Add("model.norm.weight", "BF16", {6}, norm);
  builder.Add("model.layers.0.self_attn.q_proj.bias", "F16", {8}, std::string(16, '\0'));
  directory_.Write("model.safetensors", builder.Build());
  const auto checkpoint = OpenCheckpoint(directory_.path(), SmallConfig());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelWeights& weights = (*checkpoint)->weights();
  EXPECT_EQ(weights.final_norm.dtype, DType::kBFloat16);
  EXPECT_EQ(weights.layers[0].query_bias.dtype, DType::kFloat16);
  EXPECT_EQ(weights.layers[1].query_bias.dtype, DType::kFloat32);
}

TEST_F(CheckpointTest, RefusesOtherDTypesOnlyWhereUsed) {
  SafetensorsBuilder builder = NumberedFile(SmallTensors());
  builder.Add("unused", "F8_E4M3", {6}, "123456").Add("newer", "F5_NEW", {6}, "1234");
  directory_.Write("model.safetensors", builder.Build());
  EXPECT_TRUE(OpenCheckpoint(directory_.path(), SmallConfig()).ok());
  for (const char* dtype : {"F8_E4M3", "U8", "F7_NEW"}) {
    builder.Add("model.norm.weight", dtype, {6}, "123456");
    directory_.Write("model.safetensors", builder.Build());
    ExpectInvalid(OpenCheckpoint(directory_.path(), SmallConfig()).status(),
                  {"/model.safetensors", "model.norm.weight", dtype, "F32, F16, BF16"});
  }
}

TEST_F(CheckpointTest, DirectoryWithoutWeightsIsNotFound) {
  ExpectError(OpenCheckpoint(directory_.path(), SmallConfig()).status(),
              absl::StatusCode::kNotFound,
              {directory_.path(), "model.safetensors", "model.safetensors.index.json"});
  ExpectError(OpenCheckpoint(directory_.path() + "/none", SmallConfig()).status(),
              absl::StatusCode::kNotFound, {directory_.path() + "/none"});
}

TEST_F(CheckpointTest, TruncatedFileIsAnError) {
  const std::string contents = NumberedFile(SmallTensors()).Build();
  for (const size_t length : {size_t{0}, size_t{7}, size_t{8}, size_t{100}, contents.size() - 1}) {
    directory_.Write("model.safetensors", contents.substr(0, length));
    ExpectInvalid(OpenCheckpoint(directory_.path(), SmallConfig()).status(),
                  {"/model.safetensors"});
  }
}

TEST_F(CheckpointTest, ReadsShards) {
  const auto checkpoint = OpenSharded();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  size_t i = 0;
  const auto views = NamedViews((*checkpoint)->weights());
  for (const auto& [name, shape] : SmallTensors()) {
    EXPECT_EQ(LastValue(views.at(name)), static_cast<float>(i++ / 2)) << name;
  }
}

TEST_F(CheckpointTest, ShardsThatHoldNothingUsedNeedNotExist) {
  EXPECT_TRUE(OpenSharded([](json& index) {
                index["weight_map"]["vision.weight"] = "absent.safetensors";
              }).ok());
}

TEST_F(CheckpointTest, MissingShardIsNamed) {
  ExpectError(OpenSharded([](json& index) {
                index["weight_map"]["model.norm.weight"] = "part-2.safetensors";
              }).status(),
              absl::StatusCode::kNotFound, {"/part-2.safetensors"});
}

TEST_F(CheckpointTest, TensorMissingFromIndexOrShardIsNamed) {
  ExpectError(
      OpenSharded([](json& index) { index["weight_map"].erase("lm_head.weight"); }).status(),
      absl::StatusCode::kNotFound, {"model.safetensors.index.json", "lm_head.weight"});
  // The tensors are dealt in turn: the first name is in part 0.
  ExpectError(OpenSharded([](json& index) {
                index["weight_map"]["lm_head.weight"] = "part-1.safetensors";
              }).status(),
              absl::StatusCode::kNotFound, {"/part-1.safetensors", "lm_head.weight"});
}

TEST_F(CheckpointTest, RefusesShardNamesOutsideTheDirectory) {
  for (const json& name :
       {json("../part-0.safetensors"), json("/etc/passwd"), json("sub/part-0.safetensors"),
        json(".."), json("."), json(""), json("..\\part-0.safetensors"),
        json(std::string("part-0\0.safetensors", 19)), json(3), json(nullptr), json::array()}) {
    ExpectInvalid(OpenSharded([&name](json& index) {
                    index["weight_map"]["model.norm.weight"] = name;
                  }).status(),
                  {"/model.safetensors.index.json", "model.norm.weight", "within the directory"});
  }
}

TEST_F(CheckpointTest, RefusesMalformedIndex) {
  const std::string deep(100000, '[');
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("{}"),
        std::string(R"({"weight_map":[]})"), std::string(R"({"weight_map":null})"),
        R"({"weight_map":)" + deep}) {
    directory_.Write("model.safetensors.index.json", text);
    ExpectInvalid(OpenCheckpoint(directory_.path(), SmallConfig()).status(),
                  {"/model.safetensors.index.json"});
  }
}

struct GoldenCase {
  const char* name;
  DType dtype;
  bool has_head;
  bool has_bias;
};

class GoldenCheckpointTest : public testing::TestWithParam<GoldenCase> {};

TEST_P(GoldenCheckpointTest, Opens) {
  const GoldenCase& golden = GetParam();
  const std::string directory = std::string(kGoldenDirectory) + golden.name;
  const auto config = LoadModelConfig(directory);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->checkpoint_dtype, golden.dtype);
  EXPECT_EQ(config->sliding_window, 0);
  const auto checkpoint = OpenCheckpoint(directory, *config);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  int64_t size_bytes = 0;
  for (const auto& [name, view] : NamedViews((*checkpoint)->weights())) {
    const bool expected =
        name == "lm_head.weight" ? golden.has_head : name.ends_with(".weight") || golden.has_bias;
    ASSERT_EQ(view.present(), expected) << name;
    if (!expected) continue;
    EXPECT_EQ(view.dtype, golden.dtype) << name;
    size_bytes += static_cast<int64_t>(view.size_bytes());
  }
  EXPECT_EQ((*checkpoint)->size_bytes(), size_bytes);
}

INSTANTIATE_TEST_SUITE_P(
    AllModels, GoldenCheckpointTest,
    testing::Values(GoldenCase{"llama2_mha_fp32", DType::kFloat32, true, false},
                    GoldenCase{"llama3_gqa_bf16", DType::kBFloat16, false, false},
                    GoldenCase{"sharded_fp16", DType::kFloat16, true, true},
                    GoldenCase{"mistral_fp32", DType::kFloat32, true, false}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace tidal
