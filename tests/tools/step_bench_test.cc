#include "tools/step_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "tools/attention_bench.h"
#include "tools/model_shapes.h"

namespace tidal {
namespace {

using ::testing::HasSubstr;

ServingModel LoadDummy(int64_t kv_cache_memory_bytes) {
  absl::StatusOr<ServingModel> model = LoadServingModel(
      {.model_path = std::string(TIDAL_SOURCE_DIR) + "/tests/golden/checkpoints/llama3_gqa_bf16",
       .load_format = LoadFormat::kDummy,
       .max_batch_tokens = 64,
       .max_running_requests = 4,
       .kv_cache_memory_bytes = kv_cache_memory_bytes});
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

constexpr double kReadBandwidth = 1e9;

void ExpectOrdered(const Spread& spread) {
  EXPECT_GT(spread.min, 0);
  EXPECT_LE(spread.min, spread.p10);
  EXPECT_LE(spread.p10, spread.median);
  EXPECT_LE(spread.median, spread.p90);
  EXPECT_LE(spread.p90, spread.max);
}

TEST(SpreadTest, TakesNearestRanksOfSortedValues) {
  const Spread spread = SpreadOf({5, 1, 3});
  EXPECT_EQ(spread.min, 1);
  EXPECT_EQ(spread.p10, 1);
  EXPECT_EQ(spread.median, 3);
  EXPECT_EQ(spread.p90, 5);
  EXPECT_EQ(spread.max, 5);
  std::vector<double> hundred_and_one;
  for (int i = 100; i >= 0; --i) hundred_and_one.push_back(i);
  EXPECT_EQ(SpreadOf(hundred_and_one).p10, 10);
  EXPECT_EQ(SpreadOf(hundred_and_one).p90, 90);
}

TEST(StepBenchTest, TimesDecodeStepsOfEachMethod) {
  ServingModel model = LoadDummy(16 << 20);
  StepBench bench(&model, kReadBandwidth);
  const auto full = bench.Decode({.num_streams = 3, .num_context_tokens = 200}, 2, 5);
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(full->method, "full");
  EXPECT_EQ(full->num_context_tokens, 202);
  EXPECT_EQ(full->attended_share, 1.0);
  ExpectOrdered(full->step_ms);
  ExpectOrdered(full->tokens_per_second);
  EXPECT_NEAR(full->tokens_per_second.max, 3 / (1e-3 * full->step_ms.min), 1e-6);
  // float32: all matrices once, and K and V of 3 x 204 tokens in all layers (the middle step).
  const ModelShape& shape = model.config.shape;
  const double layer = 1.0 * shape.hidden_size *
                       (2 * shape.query_size() + 2 * shape.kv_size() + 3 * shape.intermediate_size);
  const double num_weights = shape.num_layers * layer + 1.0 * shape.hidden_size * shape.vocab_size;
  const double num_cached = 3.0 * 204 * 2 * shape.kv_size() * shape.num_layers;
  EXPECT_EQ(full->step_bytes, 4 * (num_weights + num_cached));
  EXPECT_NEAR(full->floor_ms, 1e3 * full->step_bytes / kReadBandwidth, 1e-6);

  const auto tidal =
      bench.Decode({.num_streams = 2,
                    .num_context_tokens = 200,
                    .mode = AttentionMode::kTidal,
                    .selection = {.scope = SelectionScope::kKvHead, .token_budget = 32}},
                   2, 5);
  ASSERT_TRUE(tidal.ok()) << tidal.status();
  EXPECT_EQ(tidal->method, "tidal");
  EXPECT_LT(tidal->attended_share, 0.7);
  EXPECT_LT(tidal->step_bytes, full->step_bytes);

  const auto projections = bench.Decode(
      {.work = DecodeCase::Work::kProjections, .num_streams = 2, .num_context_tokens = 200}, 2, 5);
  ASSERT_TRUE(projections.ok()) << projections.status();
  EXPECT_EQ(projections->method, "projections");
  EXPECT_EQ(projections->attended_share, 0.0);
  EXPECT_EQ(projections->step_bytes, 4 * num_weights);
}

TEST(StepBenchTest, TimesPrefill) {
  ServingModel model = LoadDummy(16 << 20);
  StepBench bench(&model, kReadBandwidth);
  const auto prefill = bench.Prefill(300, 3);
  ASSERT_TRUE(prefill.ok()) << prefill.status();
  EXPECT_EQ(prefill->chunk_size, 64);
  ExpectOrdered(prefill->seconds);
}

TEST(StepBenchTest, RefusesWhatTheCacheCannotHold) {
  ServingModel model = LoadDummy(1 << 20);
  StepBench bench(&model, kReadBandwidth);
  const auto refused = bench.Decode({.num_streams = 4, .num_context_tokens = 1000}, 1, 1);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("4 streams of 1002 tokens"));
}

TEST(AttentionBenchTest, TimesEachKindOfLayer) {
  ServingModel model = LoadDummy(16 << 20);
  AttentionBench bench(&model, kReadBandwidth);
  using Kind = AttentionCase::Kind;
  const double token_bytes = 4.0 * 2 * model.config.shape.kv_size();
  for (const Kind kind : {Kind::kFull, Kind::kSelect, Kind::kSparse, Kind::kPrefill}) {
    const auto result =
        bench.Run({.kind = kind,
                   .num_streams = 2,
                   .num_context_tokens = 600,
                   .selection = {.scope = SelectionScope::kKvHead, .token_budget = 64}},
                  5);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_GT(result->layer_us.max, 0) << result->kind;
    if (kind == Kind::kPrefill) {
      EXPECT_EQ(result->layer_flops, 2 * 4.0 * model.config.shape.query_size() * 300 * 601);
    } else {
      EXPECT_EQ(result->layer_bytes, 2 * token_bytes * (kind == Kind::kSparse ? 64 : 600));
      EXPECT_NEAR(result->floor_us, 1e6 * result->layer_bytes / kReadBandwidth, 1e-6);
    }
  }
}

TEST(ReadBandwidthTest, IsThatOfAMachine) {
  ServingModel model = LoadDummy(1 << 20);
  const auto bandwidth = model.backend->MeasureReadBandwidth();
  ASSERT_TRUE(bandwidth.ok()) << bandwidth.status();
  EXPECT_GT(*bandwidth, 1e8);
  EXPECT_LT(*bandwidth, 1e14);
}

TEST(ModelShapesTest, KnowsItsNamesAndRefusesOthers) {
  for (const std::string& name : ModelShapeNames()) {
    const auto config = FindModelShape(name);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->shape.num_layers, 32);
    EXPECT_EQ(config->shape.head_dim, 128);
  }
  EXPECT_EQ(FindModelShape("llama-3-8b")->shape.group_size(), 4);
  const auto unknown = FindModelShape("llama-9");
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("llama-2-7b, llama-3-8b"));
  EXPECT_EQ(FindModelShape("/no/config.json").status().code(), absl::StatusCode::kNotFound);
  const std::string needle = std::string(TIDAL_SOURCE_DIR) + "/models/needle/config.json";
  EXPECT_EQ(FindModelShape(needle)->shape.vocab_size, 1536);
}

TEST(BenchReportTest, PrintsARowACase) {
  std::ostringstream out;
  PrintTable(std::vector<DecodeResult>{{.method = "tidal",
                                        .num_streams = 8,
                                        .num_context_tokens = 2048,
                                        .token_budget = 256,
                                        .step_ms = {1, 1, 2, 3, 3},
                                        .tokens_per_second = {4000, 4000, 5000, 6000, 6000},
                                        .attended_share = 0.5,
                                        .step_bytes = 3e9,
                                        .floor_ms = 1.5}},
             &out);
  EXPECT_THAT(out.str(), HasSubstr("tidal           2048       8    256    50.0%"));
  EXPECT_THAT(out.str(), HasSubstr("3.000    1.500   75.0%"));
}

}  // namespace
}  // namespace tidal
