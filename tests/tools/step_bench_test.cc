#include "tools/step_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>

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

void ExpectOrdered(const Spread& spread) {
  EXPECT_GT(spread.min, 0);
  EXPECT_LE(spread.min, spread.median);
  EXPECT_LE(spread.median, spread.max);
}

TEST(SpreadTest, TakesTheMiddleOfSortedValues) {
  const Spread spread = SpreadOf({5, 1, 3});
  EXPECT_EQ(spread.min, 1);
  EXPECT_EQ(spread.median, 3);
  EXPECT_EQ(spread.max, 5);
}

TEST(StepBenchTest, TimesDecodeStepsOfEachMethod) {
  ServingModel model = LoadDummy(16 << 20);
  StepBench bench(&model);
  const auto full = bench.Decode({.num_streams = 3, .num_context_tokens = 200}, 2, 5);
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(full->method, "full");
  EXPECT_EQ(full->num_context_tokens, 202);
  EXPECT_EQ(full->attended_share, 1.0);
  ExpectOrdered(full->step_ms);
  ExpectOrdered(full->tokens_per_second);
  EXPECT_NEAR(full->tokens_per_second.max, 3 / (1e-3 * full->step_ms.min), 1e-6);

  const auto tidal =
      bench.Decode({.num_streams = 2,
                    .num_context_tokens = 200,
                    .mode = AttentionMode::kTidal,
                    .selection = {.scope = SelectionScope::kKvHead, .token_budget = 32}},
                   2, 5);
  ASSERT_TRUE(tidal.ok()) << tidal.status();
  EXPECT_EQ(tidal->method, "tidal");
  EXPECT_LT(tidal->attended_share, 0.7);
}

TEST(StepBenchTest, TimesPrefill) {
  ServingModel model = LoadDummy(16 << 20);
  StepBench bench(&model);
  const auto prefill = bench.Prefill(300, 3);
  ASSERT_TRUE(prefill.ok()) << prefill.status();
  EXPECT_EQ(prefill->chunk_size, 64);
  ExpectOrdered(prefill->seconds);
}

TEST(StepBenchTest, RefusesWhatTheCacheCannotHold) {
  ServingModel model = LoadDummy(1 << 20);
  StepBench bench(&model);
  const auto refused = bench.Decode({.num_streams = 4, .num_context_tokens = 1000}, 1, 1);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("4 streams of 1002 tokens"));
}

TEST(BenchReportTest, PrintsARowACase) {
  std::ostringstream out;
  PrintTable(std::vector<DecodeResult>{{.method = "tidal",
                                        .num_streams = 8,
                                        .num_context_tokens = 2048,
                                        .token_budget = 256,
                                        .step_ms = {1, 2, 3},
                                        .tokens_per_second = {4000, 5000, 6000},
                                        .attended_share = 0.5}},
             &out);
  EXPECT_THAT(out.str(), HasSubstr("tidal       2048        8     256     50.0%"));
}

}  // namespace
}  // namespace tidal
