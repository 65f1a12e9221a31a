// A request's tokens depend on nothing but the request: not on what else runs, on the size of the
// chunks, on the blocks it gets, or on preemption. Through the engine, with a real model.
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "tests/engine/recording_observer.h"
#include "tests/engine/test_model.h"

namespace tidal {
namespace {

struct Conditions {
  std::string name;
  int32_t max_batch_tokens = 512;
  int32_t max_running_requests = 8;
  int32_t num_blocks = 512;
  int num_neighbours = 0;
  int32_t num_threads = 2;
  std::optional<Request> earlier = std::nullopt;  // runs to its end first
};

struct Outcome {
  std::vector<int32_t> token_ids;
  std::vector<float> logprobs;
  int32_t num_preemptions = 0;
  int32_t num_cached_prompt_tokens = 0;
};

Request MakeRequest(int index, int32_t num_prompt_tokens, int32_t max_new_tokens) {
  Request request;
  request.id = absl::StrCat("request-", index);
  for (int32_t i = 0; i < num_prompt_tokens; ++i) {
    request.prompt_token_ids.push_back(3 + (i * (7 + index) + i * i * 5 + index) % 250);
  }
  request.stopping.max_new_tokens = max_new_tokens;
  request.stopping.ignore_eos = true;
  request.sampling.seed = static_cast<uint64_t>(index);
  request.arrival_time = Clock::Monotonic()->Now();
  return request;
}

// Runs `request` last in line behind its neighbours, so that it is the one preempted.
Outcome RunUnder(const Conditions& conditions, const Request& request) {
  TestModel model =
      LoadTestModel(SourceFolder() + "/tests/golden/checkpoints/llama3_gqa_bf16",
                    {.limits = {.max_batch_tokens = conditions.max_batch_tokens,
                                .max_batch_sequences = conditions.max_running_requests,
                                .max_model_len = 1024},
                     .num_blocks = conditions.num_blocks,
                     .plan = {.full_layers = {{0, 1}}, .selection_layers = {{2, 5}}},
                     .num_threads = conditions.num_threads});
  RecordingEngineObserver engine_observer;
  Engine engine({.max_model_len = 1024,
                 .max_batch_tokens = conditions.max_batch_tokens,
                 .max_running_requests = conditions.max_running_requests,
                 .max_queued_requests = 64,
                 .max_queued_tokens = 1 << 20,
                 .num_blocks = conditions.num_blocks,
                 .eos_token_ids = {}},
                model.plan, model.runner.get(), nullptr, Clock::Monotonic(), &engine_observer);
  if (conditions.earlier.has_value()) {
    const auto earlier = std::make_shared<RecordingGenerationObserver>();
    EXPECT_TRUE(engine.Submit(*conditions.earlier, earlier).ok());
    engine.Start();
    earlier->WaitForEnd();
  }
  std::vector<std::shared_ptr<RecordingGenerationObserver>> generations;
  for (int i = 0; i <= conditions.num_neighbours; ++i) {
    const bool is_neighbour = i < conditions.num_neighbours;
    generations.push_back(std::make_shared<RecordingGenerationObserver>());
    const auto ticket = engine.Submit(
        is_neighbour ? MakeRequest(100 + i, 20 + 31 * i, 60) : request, generations.back());
    EXPECT_TRUE(ticket.ok()) << ticket.status();
  }
  if (!conditions.earlier.has_value()) engine.Start();
  for (const auto& generation : generations) generation->WaitForEnd();
  EXPECT_TRUE(generations.back()->finished().has_value());
  return {generations.back()->token_ids(), generations.back()->logprobs(),
          generations.back()->finished()->usage.num_preemptions,
          generations.back()->finished()->usage.num_cached_prompt_tokens};
}

const std::vector<Conditions>& AllConditions() {
  static const std::vector<Conditions> conditions = {
      {.name = "one thread", .num_threads = 1},
      {.name = "chunks of 8", .max_batch_tokens = 8},
      {.name = "chunks of 37", .max_batch_tokens = 37},
      {.name = "seven neighbours", .num_neighbours = 7},
      {.name = "seven neighbours, small steps", .max_batch_tokens = 48, .num_neighbours = 7},
  };
  return conditions;
}

class InvarianceTest : public ::testing::TestWithParam<AttentionMode> {
 protected:
  Request MakeSubject(float temperature) const {
    Request request = MakeRequest(1, 150, 60);
    request.sampling.temperature = temperature;
    request.attention = {.mode = GetParam(),
                         .selection = {.scope = SelectionScope::kKvHead, .token_budget = 48}};
    return request;
  }
};

TEST_P(InvarianceTest, GreedyTokensDependOnNothingElse) {
  const Request subject = MakeSubject(0.0f);
  const std::vector<int32_t> alone = RunUnder({.name = "alone"}, subject).token_ids;
  ASSERT_EQ(alone.size(), 60u);
  for (const Conditions& conditions : AllConditions()) {
    EXPECT_EQ(RunUnder(conditions, subject).token_ids, alone) << conditions.name;
  }
}

TEST_P(InvarianceTest, SampledTokensDependOnSeedAndNothingElse) {
  const Request subject = MakeSubject(0.8f);
  const std::vector<int32_t> alone = RunUnder({.name = "alone"}, subject).token_ids;
  for (const Conditions& conditions : AllConditions()) {
    EXPECT_EQ(RunUnder(conditions, subject).token_ids, alone) << conditions.name;
  }
  Request other_seed = subject;
  other_seed.sampling.seed = 12345;
  EXPECT_NE(RunUnder({.name = "other seed"}, other_seed).token_ids, alone);
}

INSTANTIATE_TEST_SUITE_P(Modes, InvarianceTest,
                         ::testing::Values(AttentionMode::kFull, AttentionMode::kTidal,
                                           AttentionMode::kQuest),
                         [](const auto& test) {
                           return test.param == AttentionMode::kFull    ? "Full"
                                  : test.param == AttentionMode::kTidal ? "Tidal"
                                                                        : "Quest";
                         });

// Another question about a document finds the document's blocks in the cache.
TEST_P(InvarianceTest, ACachedPrefixChangesNoTokens) {
  Request subject = MakeSubject(0.8f);
  subject.sampling.return_logprobs = true;
  const Outcome alone = RunUnder({.name = "alone"}, subject);
  EXPECT_EQ(alone.num_cached_prompt_tokens, 0);
  Request earlier = subject;
  earlier.id = "earlier";
  earlier.prompt_token_ids.resize(100);
  earlier.prompt_token_ids.push_back(3);
  const Outcome later = RunUnder({.name = "after another question", .earlier = earlier}, subject);
  EXPECT_EQ(later.num_cached_prompt_tokens, 96);
  EXPECT_EQ(later.token_ids, alone.token_ids);
  EXPECT_EQ(later.logprobs, alone.logprobs) << "to the last bit";
}

// What was decoded may be cached where attention was full, and only there.
TEST_P(InvarianceTest, ACachedOutputChangesNoTokens) {
  Request earlier = MakeSubject(0.8f);
  earlier.id = "earlier";
  const Outcome first = RunUnder({.name = "alone"}, earlier);
  Request subject = earlier;
  subject.id = "subject";
  subject.prompt_token_ids.insert(subject.prompt_token_ids.end(), first.token_ids.begin(),
                                  first.token_ids.end());
  const Outcome alone = RunUnder({.name = "alone"}, subject);
  const Outcome later = RunUnder({.name = "after its first half", .earlier = earlier}, subject);
  EXPECT_EQ(later.num_cached_prompt_tokens, GetParam() == AttentionMode::kFull ? 208 : 144);
  EXPECT_EQ(later.token_ids, alone.token_ids);
}

// With full attention a recomputed K and V is what decoding wrote; with sparse attention it is by
// design the exact one instead, so only full attention promises the same tokens.
TEST(PreemptionInvarianceTest, PreemptionChangesNoTokens) {
  for (const float temperature : {0.0f, 0.8f}) {
    Request subject = MakeRequest(1, 150, 60);
    subject.sampling.temperature = temperature;
    const Outcome alone = RunUnder({.name = "alone"}, subject);
    const Outcome preempted =
        RunUnder({.name = "short of blocks", .num_blocks = 26, .num_neighbours = 3}, subject);
    EXPECT_EQ(alone.num_preemptions, 0);
    EXPECT_GT(preempted.num_preemptions, 0);
    EXPECT_EQ(preempted.token_ids, alone.token_ids);
  }
}

class CorrectionTest : public ::testing::TestWithParam<AttentionMode> {
 protected:
  static Request MakeSubject(int32_t interval) {
    Request request = MakeRequest(1, 150, 60);
    request.sampling.temperature = 0.8f;
    request.sampling.return_logprobs = true;
    request.attention = {.mode = GetParam(),
                         .selection = {.scope = SelectionScope::kKvHead, .token_budget = 48},
                         .correction_interval = interval};
    return request;
  }
};

TEST_P(CorrectionTest, AnIntervalOfOneIsFullAttentionExactly) {
  const Outcome corrected = RunUnder({.name = "corrected"}, MakeSubject(1));
  Request subject = MakeSubject(1);
  subject.attention.mode = AttentionMode::kFull;
  const Outcome full = RunUnder({.name = "full"}, subject);
  EXPECT_EQ(corrected.token_ids, full.token_ids);
  EXPECT_EQ(corrected.logprobs, full.logprobs) << "to the last bit";
  EXPECT_NE(RunUnder({.name = "uncorrected"}, MakeSubject(0)).logprobs, full.logprobs);
}

TEST_P(CorrectionTest, CorrectedTokensDependOnNothingElse) {
  const Request subject = MakeSubject(7);
  const std::vector<int32_t> alone = RunUnder({.name = "alone"}, subject).token_ids;
  ASSERT_EQ(alone.size(), 60u);
  for (const Conditions& conditions : AllConditions()) {
    EXPECT_EQ(RunUnder(conditions, subject).token_ids, alone) << conditions.name;
  }
}

TEST_P(CorrectionTest, WhatIsCorrectedIsAsGoodAsPrefilled) {
  // So the next turn of a dialogue finds it in the cache, and yields what it would without.
  const Request earlier = MakeSubject(20);
  const Outcome first = RunUnder({.name = "alone"}, earlier);
  Request subject = earlier;
  subject.id = "subject";
  subject.prompt_token_ids.insert(subject.prompt_token_ids.end(), first.token_ids.begin(),
                                  first.token_ids.end());
  const Outcome alone = RunUnder({.name = "alone"}, subject);
  const Outcome later = RunUnder({.name = "after its first half", .earlier = earlier}, subject);
  // Corrected up to the 40th of the 60 generated tokens: 190 tokens, 11 whole blocks.
  EXPECT_EQ(later.num_cached_prompt_tokens, 176);
  EXPECT_EQ(later.token_ids, alone.token_ids);
}

TEST_P(CorrectionTest, ContinuesAfterAPreemptionAsAnUndisturbedOne) {
  const Request subject = MakeSubject(1);
  const Outcome alone = RunUnder({.name = "alone"}, subject);
  const Outcome preempted =
      RunUnder({.name = "short of blocks", .num_blocks = 26, .num_neighbours = 3}, subject);
  EXPECT_GT(preempted.num_preemptions, 0);
  EXPECT_EQ(preempted.token_ids, alone.token_ids);
}

INSTANTIATE_TEST_SUITE_P(Modes, CorrectionTest,
                         ::testing::Values(AttentionMode::kTidal, AttentionMode::kQuest),
                         [](const auto& test) {
                           return test.param == AttentionMode::kTidal ? "Tidal" : "Quest";
                         });

TEST(BudgetTest, ABudgetThatCoversTheContextIsFullAttentionExactly) {
  Request full = MakeRequest(1, 150, 40);
  full.sampling.temperature = 0.0f;
  full.sampling.return_logprobs = true;
  Request covered = full;
  covered.attention = {.mode = AttentionMode::kTidal,
                       .selection = {.scope = SelectionScope::kKvHead, .token_budget = 190}};
  const Outcome expected = RunUnder({.name = "full"}, full);
  const Outcome actual = RunUnder({.name = "covered"}, covered);
  EXPECT_EQ(actual.token_ids, expected.token_ids);
  EXPECT_EQ(actual.logprobs, expected.logprobs) << "to the last bit";
}

}  // namespace
}  // namespace tidal
