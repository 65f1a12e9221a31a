// The whole model against Hugging Face transformers (tests/golden/make_checkpoints.py), and its
// TidalDecode steps against a float64 reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/engine/test_model.h"

namespace tidal {
namespace {

using nlohmann::json;

// Largest absolute error of a float32 logit.
constexpr float kLogitTolerance = 2e-3f;

std::string CheckpointPath(const std::string& name) {
  return SourceFolder() + "/tests/golden/checkpoints/" + name;
}

json ReadJson(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  return json::parse(file);
}

float MaxAbsError(const std::vector<float>& actual, const std::vector<float>& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  float error = 0.0f;
  for (size_t i = 0; i < std::min(actual.size(), expected.size()); ++i) {
    // Written so that NaN counts as an error.
    if (!(std::abs(actual[i] - expected[i]) <= error)) error = std::abs(actual[i] - expected[i]);
  }
  return error;
}

class GoldenModelTest : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenModelTest, LogitsAndGreedyTokensAreTransformers) {
  const std::string path = CheckpointPath(GetParam());
  TestModel model = LoadTestModel(path);
  const json golden = ReadJson(path + "/golden.json");
  ASSERT_FALSE(golden["prompts"].empty());
  for (const int32_t chunk_size : {1, 7, 64, 512}) {
    for (const json& prompt : golden["prompts"]) {
      SCOPED_TRACE(prompt["name"].get<std::string>() + ", chunks of " + std::to_string(chunk_size));
      // Scattered blocks: nothing may hang on their order.
      TestSequence sequence(&model, /*sampler_slot=*/0, /*first_block=*/500, /*block_stride=*/-3);
      std::vector<float> logits =
          sequence.Prefill(prompt["token_ids"].get<std::vector<int32_t>>(), chunk_size);
      EXPECT_LT(MaxAbsError(logits, prompt["logits"].get<std::vector<float>>()), kLogitTolerance);
      for (const int32_t expected : prompt["greedy_token_ids"].get<std::vector<int32_t>>()) {
        ASSERT_EQ(ArgMax(logits), expected);
        logits = sequence.Run({expected});
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenModelTest,
                         ::testing::Values("llama2_mha_fp32", "llama3_gqa_bf16", "sharded_fp16",
                                           "mistral_fp32", "heads_of_64_fp16", "heads_of_128_bf16"),
                         [](const auto& test) { return test.param; });

class TidalGoldenTest : public ::testing::Test {
 protected:
  TidalGoldenTest()
      : path_(CheckpointPath("llama3_gqa_bf16")), golden_(ReadJson(path_ + "/tidal_golden.json")) {
    selection_layers_ = golden_["selection_layers"].get<std::vector<int32_t>>();
    model_ = LoadTestModel(
        path_, {.plan = {.full_layers = {{0, 1}}, .selection_layers = selection_layers_}});
  }

  // Runs one decode stage by stage and returns what each selection layer picked.
  std::vector<std::vector<std::vector<int32_t>>> DecodeReadingSelections(
      const SequenceChunk& chunk, std::vector<float>* logits) {
    std::vector<std::vector<std::vector<int32_t>>> selected;
    Backend& backend = *model_.backend;
    StepBatch batch;
    batch.chunks.push_back(chunk);
    EXPECT_TRUE(backend.BeginStep(batch).ok());
    EXPECT_TRUE(backend.Embed().ok());
    for (int32_t layer = 0; layer < model_.plan.num_layers(); ++layer) {
      EXPECT_TRUE(backend.AttentionInput(layer).ok());
      EXPECT_TRUE(backend.Attention(layer, model_.plan.pass(layer)).ok());
      if (model_.plan.role(layer) == LayerRole::kSelect) {
        selected.emplace_back();
        EXPECT_TRUE(backend.ReadSelection(0, &selected.back()).ok());
      }
      EXPECT_TRUE(backend.AttentionOutput(layer).ok());
      EXPECT_TRUE(backend.Mlp(layer).ok());
    }
    EXPECT_TRUE(backend.Sample().ok());
    std::vector<SampledToken> sampled;
    EXPECT_TRUE(backend.EndStep(&sampled).ok());
    EXPECT_TRUE(backend.ReadLogits(logits).ok());
    return selected;
  }

  static SelectionScope ScopeOf(const json& run) {
    if (run["scope"] == "layer") return SelectionScope::kLayer;
    return run["scope"] == "query_head" ? SelectionScope::kQueryHead : SelectionScope::kKvHead;
  }

  const std::string path_;
  const json golden_;
  std::vector<int32_t> selection_layers_;
  TestModel model_ = {{}, *LayerPlan::Create(1, {}), nullptr, nullptr};
};

TEST_F(TidalGoldenTest, SelectionsAndLogitsAreTheReferences) {
  ASSERT_GE(golden_["runs"].size(), 4u);
  const auto prompt = golden_["prompt_token_ids"].get<std::vector<int32_t>>();
  const auto forced = golden_["forced_token_ids"].get<std::vector<int32_t>>();
  for (const json& run : golden_["runs"]) {
    SCOPED_TRACE(run["scope"].get<std::string>() + ", sinks " + run["num_sink_tokens"].dump());
    const Selection selection{.scope = ScopeOf(run),
                              .token_budget = run["token_budget"],
                              .num_sink_tokens = run["num_sink_tokens"],
                              .num_recent_tokens = run["num_recent_tokens"]};
    TestSequence sequence(&model_, 0, 0);
    sequence.Prefill(prompt, 512);
    for (size_t step = 0; step < forced.size(); ++step) {
      const std::vector<int32_t> token = {forced[step]};
      std::vector<float> logits;
      const auto selected = DecodeReadingSelections(
          sequence.MakeChunk(token, AttentionMode::kTidal, selection), &logits);
      const json& expected = run["steps"][step];
      EXPECT_EQ(selected,
                expected["selected"].get<std::vector<std::vector<std::vector<int32_t>>>>());
      EXPECT_LT(MaxAbsError(logits, expected["logits"].get<std::vector<float>>()), kLogitTolerance);
    }
  }
}

TEST_F(TidalGoldenTest, SparseDecodingDiffersFromFullBeyondTheTolerance) {
  // Otherwise the test above could not tell the two apart.
  for (const json& run : golden_["runs"]) {
    EXPECT_GT(MaxAbsError(run["steps"][0]["logits"].get<std::vector<float>>(),
                          golden_["full_logits"][0].get<std::vector<float>>()),
              10 * kLogitTolerance);
  }
}

TEST_F(TidalGoldenTest, FullDecodingIsTheReferences) {
  TestSequence sequence(&model_, 0, 0);
  sequence.Prefill(golden_["prompt_token_ids"].get<std::vector<int32_t>>(), 512);
  const auto forced = golden_["forced_token_ids"].get<std::vector<int32_t>>();
  for (size_t step = 0; step < forced.size(); ++step) {
    const std::vector<float> logits = sequence.Run({forced[step]});
    EXPECT_LT(MaxAbsError(logits, golden_["full_logits"][step].get<std::vector<float>>()),
              kLogitTolerance);
  }
}

}  // namespace
}  // namespace tidal
