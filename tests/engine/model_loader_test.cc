#include "engine/model_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/engine/checkpoint/temp_directory.h"

namespace tidal {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Message(const absl::StatusOr<ServingModel>& model) {
  return std::string(model.status().message());
}

// A directory with nothing but a config.json, for --load_format=dummy.
class ModelLoaderTest : public ::testing::Test {
 protected:
  ModelLoaderTest() { WriteConfig(""); }

  void WriteConfig(const std::string& more_fields) {
    directory_.Write(
        "config.json",
        std::string(
            R"({"architectures": ["MistralForCausalLM"], "hidden_size": 64, "num_hidden_layers": 4,
               "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64,
               "vocab_size": 100, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
               "hidden_act": "silu", "rope_theta": 10000.0)") +
            (more_fields.empty() ? R"(, "sliding_window": null)" : more_fields) + "}");
  }

  ModelLoadOptions Options() const {
    return {.model_path = directory_.path(),
            .load_format = LoadFormat::kDummy,
            .cpu_threads = 1,
            .max_batch_tokens = 32,
            .max_running_requests = 4,
            .kv_cache_memory_bytes = 16 << 20};
  }

  TempDirectory directory_;
};

// K and V of 4 layers, 2 heads of 32, float32, and for each block the minima and maxima of K.
constexpr int64_t kBytesPerToken = 4 * 2 * 2 * 32 * 4 * 17 / 16;

TEST_F(ModelLoaderTest, LoadsADummyFromItsConfigAlone) {
  const auto model = LoadServingModel(Options());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE(directory_.path().ends_with("/" + model->name));
  EXPECT_EQ(model->tokenizer, nullptr);
  EXPECT_EQ(model->max_model_len, 1024);
  EXPECT_EQ(model->plan.LayersWithRole(LayerRole::kSelect).size(), 2u);
  EXPECT_EQ(model->backend->memory_use().kv_cache_bytes,
            model->num_blocks * model->backend->kv_block_size_bytes());
}

TEST_F(ModelLoaderTest, TakesTheCheckpointsLayerPlanUnlessOptionsSayOtherwise) {
  EXPECT_EQ(LoadServingModel(Options())->plan_source, "default");
  directory_.Write("tidal.json",
                   R"({"full_layers": [0], "selection_layers": [1], "calibration": {"a": 1}})");
  const auto model = LoadServingModel(Options());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->plan_source, directory_.path() + "/tidal.json");
  EXPECT_THAT(model->plan.LayersWithRole(LayerRole::kSelect), ElementsAre(1));
  EXPECT_THAT(model->plan.LayersWithRole(LayerRole::kSparse), ElementsAre(2, 3));
  ModelLoadOptions options = Options();
  options.layer_plan.selection_layers = {{2}};
  const auto overridden = LoadServingModel(options);
  ASSERT_TRUE(overridden.ok()) << overridden.status();
  EXPECT_EQ(overridden->plan_source, "options");
  EXPECT_THAT(overridden->plan.LayersWithRole(LayerRole::kFull), ElementsAre(0, 1));
}

TEST_F(ModelLoaderTest, NamesWhatIsWrongInALayerPlanFile) {
  const std::string file = directory_.path() + "/tidal.json: ";
  const std::pair<const char*, const char*> cases[] = {
      {"{", "parse error"},
      {"[]", "is not a JSON object"},
      {R"({"full_layers": [0]})", "selection_layers is missing"},
      {R"({"full_layers": 0, "selection_layers": [1]})", "full_layers is not an array"},
      {R"({"full_layers": [-1], "selection_layers": [1]})", "full_layers: -1 is not a layer's"},
      {R"({"full_layers": [0], "selection_layers": [1], "layers": 4})", "'layers' is none of"},
      {R"({"full_layers": [0], "selection_layers": [9]})", "layer 9 is not in 0..3"},
      {R"({"full_layers": [], "selection_layers": [1]})", "layer 0 would be sparse"},
  };
  for (const auto& [text, message] : cases) {
    directory_.Write("tidal.json", text);
    const auto model = LoadServingModel(Options());
    EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(Message(model), AllOf(StartsWith(file), HasSubstr(message)));
  }
}

TEST_F(ModelLoaderTest, TakesNoMoreCacheThanTheRunningRequestsCouldFill) {
  const auto model = LoadServingModel(Options());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->num_blocks, 4 * 1024 / kBlockSize);
}

TEST_F(ModelLoaderTest, ServesWhatTheCacheHoldsWhereThatIsLess) {
  ModelLoadOptions options = Options();
  options.kv_cache_memory_bytes = 200 * kBytesPerToken;
  const auto model = LoadServingModel(options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->max_model_len, 192);
}

TEST_F(ModelLoaderTest, NamesTheBytesAndTheLongestContextWhereTheCacheDoesNotFit) {
  ModelLoadOptions options = Options();
  options.kv_cache_memory_bytes = 200 * kBytesPerToken;
  options.max_model_len = 1000;
  const auto model = LoadServingModel(options);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(model), HasSubstr("1000 tokens needs 2193408 bytes"));
  EXPECT_THAT(Message(model), HasSubstr("longest context that fits is 192 tokens"));
}

TEST_F(ModelLoaderTest, RefusesACacheLargerThanTheMemory) {
  ModelLoadOptions options = Options();
  options.max_running_requests = 32;
  options.kv_cache_memory_bytes = int64_t{1} << 60;
  const auto model = LoadServingModel(options);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(model), HasSubstr("bytes available"));
}

TEST_F(ModelLoaderTest, RefusesContextsLongerThanTheModels) {
  ModelLoadOptions options = Options();
  options.max_model_len = 1025;
  const auto model = LoadServingModel(options);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(model), HasSubstr("max_model_len: 1025 is more than the checkpoint's 1024"));
}

TEST_F(ModelLoaderTest, RefusesContextsBeyondTheSlidingWindow) {
  WriteConfig(R"(, "sliding_window": 256)");
  ModelLoadOptions options = Options();
  auto model = LoadServingModel(options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->max_model_len, 256);
  options.max_model_len = 257;
  model = LoadServingModel(options);
  EXPECT_THAT(Message(model), HasSubstr("sliding window"));
}

TEST_F(ModelLoaderTest, RefusesMoreRequestsThanAStepHasTokens) {
  ModelLoadOptions options = Options();
  options.max_running_requests = 33;
  EXPECT_THAT(Message(LoadServingModel(options)),
              HasSubstr("max_running_requests: 33 is not in 1..32"));
}

// Heads of 32 are not served by CUDA, so this holds on a machine with a GPU too.
TEST_F(ModelLoaderTest, SaysWhatCudaLacks) {
  ModelLoadOptions options = Options();
  options.device = Device::kCuda;
  const auto model = LoadServingModel(options);
  EXPECT_THAT(Message(model), HasSubstr("device: cuda: "));
  if (model.status().code() == absl::StatusCode::kInvalidArgument) {
    EXPECT_THAT(Message(model), HasSubstr("head_dim is 32"));
  } else {
    EXPECT_EQ(model.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(Message(model), ::testing::AnyOf(HasSubstr("libtidal_cuda.so"), HasSubstr("NVIDIA"),
                                                 HasSubstr("CUDA plugin")));
  }
}

TEST_F(ModelLoaderTest, FallsBackToTheCpuWithAWarning) {
  ModelLoadOptions options = Options();
  std::vector<std::string> warnings;
  options.on_warning = [&](absl::string_view warning) { warnings.emplace_back(warning); };
  const auto model = LoadServingModel(options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->device, Device::kCpu);
  EXPECT_THAT(warnings, ::testing::ElementsAre(HasSubstr("serving on the CPU: CUDA cannot: ")));
  options.device = Device::kCpu;
  ASSERT_TRUE(LoadServingModel(options).ok());
  EXPECT_EQ(warnings.size(), 1u);
}

TEST_F(ModelLoaderTest, NeedsATokenizerUnlessItIsADummy) {
  ModelLoadOptions options = Options();
  options.load_format = LoadFormat::kAuto;
  EXPECT_EQ(LoadServingModel(options).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ModelLoaderTest, RefusesALayerPlanThatDoesNotSuitTheModel) {
  ModelLoadOptions options = Options();
  options.layer_plan.selection_layers = {{2, 4}};
  EXPECT_THAT(Message(LoadServingModel(options)), HasSubstr("layer 4 is not in 0..3"));
}

}  // namespace
}  // namespace tidal
