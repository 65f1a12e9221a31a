#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <future>
#include <latch>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/engine/fake_clock.h"
#include "tests/engine/fake_model_runner.h"
#include "tests/engine/fake_tokenizer.h"
#include "tests/engine/recording_observer.h"

namespace tidal {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int32_t kVocabSize = 256;
constexpr int32_t kEos = 0;

EngineOptions SmallOptions() {
  return {.max_model_len = 512,
          .max_batch_tokens = 32,
          .max_running_requests = 8,
          .max_queued_requests = 16,
          .max_queued_tokens = 4096,
          .num_blocks = 64,
          .eos_token_ids = {kEos}};
}

// What FakeModelRunner::HashOfHistory yields for a request that runs alone.
std::vector<int32_t> ExpectedTokens(std::vector<int32_t> history, int32_t count) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t token_id = 1 + FakeModelRunner::HashOfHistory(history, kVocabSize - 1);
    tokens.push_back(token_id);
    history.push_back(token_id);
  }
  return tokens;
}

// The parameter is the number of steps that may be in flight.
class EngineTest : public ::testing::TestWithParam<int32_t> {
 protected:
  explicit EngineTest(EngineOptions options = SmallOptions()) { Reset(std::move(options)); }

  void Reset(EngineOptions options) {
    engine_.reset();
    runner_ = std::make_unique<FakeModelRunner>(
        options.num_blocks,
        [this](const std::vector<int32_t>& history) {
          return next_token_ ? next_token_(history)
                             : 1 + FakeModelRunner::HashOfHistory(history, kVocabSize - 1);
        },
        GetParam());
    const LayerPlan plan =
        *LayerPlan::Create(8, {.full_layers = {{0, 1}}, .selection_layers = {{2, 4}}});
    engine_ = std::make_unique<Engine>(std::move(options), plan, runner_.get(), &tokenizer_,
                                       &clock_, &observer_);
  }

  Request MakeRequest(int32_t num_prompt_tokens, int32_t max_new_tokens) {
    Request request;
    request.id = absl::StrCat("request-", ++num_requests_);
    for (int32_t i = 0; i < num_prompt_tokens; ++i) {
      request.prompt_token_ids.push_back((num_requests_ * 31 + i) % kVocabSize);
    }
    request.stopping.max_new_tokens = max_new_tokens;
    request.arrival_time = clock_.Now();
    return request;
  }

  std::shared_ptr<RecordingGenerationObserver> SubmitOk(Request request,
                                                        RequestTicket* ticket = nullptr) {
    auto observer = std::make_shared<RecordingGenerationObserver>();
    const absl::StatusOr<RequestTicket> submitted = engine_->Submit(std::move(request), observer);
    EXPECT_TRUE(submitted.ok()) << submitted.status();
    if (ticket != nullptr && submitted.ok()) *ticket = *submitted;
    return observer;
  }

  // Holds the engine in its first step until released.
  void BlockFirstStep(std::latch* entered, std::latch* release) {
    runner_->set_on_launch([entered, release](const StepBatch&) {
      if (!entered->try_wait()) {
        entered->count_down();
        release->wait();
      }
      return absl::OkStatus();
    });
  }

  FakeClock clock_;
  FakeTokenizer tokenizer_ = FakeTokenizer::OfBytes();
  RecordingEngineObserver observer_;
  FakeModelRunner::NextToken next_token_;
  std::unique_ptr<FakeModelRunner> runner_;
  std::unique_ptr<Engine> engine_;  // last: stops before what it points to goes
  int num_requests_ = 0;
};

TEST_P(EngineTest, GeneratesUpToTheLengthAskedFor) {
  const Request request = MakeRequest(20, 10);
  const std::vector<int32_t> expected = ExpectedTokens(request.prompt_token_ids, 10);
  engine_->Start();
  const auto generation = SubmitOk(request);
  generation->WaitForEnd();
  EXPECT_EQ(generation->token_ids(), expected);
  ASSERT_TRUE(generation->finished().has_value());
  EXPECT_EQ(generation->finished()->ending.reason, FinishReason::kLength);
  EXPECT_EQ(generation->finished()->usage.num_prompt_tokens, 20);
  EXPECT_EQ(generation->finished()->usage.num_generated_tokens, 10);
  EXPECT_EQ(generation->started()->num_prompt_tokens, 20);
  EXPECT_TRUE(engine_->WaitUntilIdle(absl::InfiniteDuration()));
  EXPECT_EQ(engine_->load().num_used_blocks, 0);
}

TEST_P(EngineTest, ReportsProgressOfEachPrefillChunk) {
  engine_->Start();
  const auto generation = SubmitOk(MakeRequest(70, 2));
  generation->WaitForEnd();
  EXPECT_THAT(generation->progress(), ElementsAre(32, 64, 70));
}

TEST_P(EngineTest, EveryRequestYieldsWhatItWouldAlone) {
  engine_->Start();
  std::vector<std::vector<int32_t>> expected;
  std::vector<std::shared_ptr<RecordingGenerationObserver>> generations;
  for (int i = 0; i < 16; ++i) {
    const Request request = MakeRequest(1 + i * 7, 5 + i * 3);
    expected.push_back(ExpectedTokens(request.prompt_token_ids, 5 + i * 3));
    generations.push_back(SubmitOk(request));
  }
  for (size_t i = 0; i < generations.size(); ++i) {
    generations[i]->WaitForEnd();
    EXPECT_EQ(generations[i]->token_ids(), expected[i]) << "request " << i;
  }
}

TEST_P(EngineTest, PreemptionChangesNoTokens) {
  EngineOptions options = SmallOptions();
  options.num_blocks = 12;
  options.max_model_len = 192;
  Reset(options);
  engine_->Start();
  std::vector<std::vector<int32_t>> expected;
  std::vector<std::shared_ptr<RecordingGenerationObserver>> generations;
  for (int i = 0; i < 6; ++i) {
    const Request request = MakeRequest(10, 100);
    expected.push_back(ExpectedTokens(request.prompt_token_ids, 100));
    generations.push_back(SubmitOk(request));
  }
  int32_t num_preemptions = 0;
  for (size_t i = 0; i < generations.size(); ++i) {
    generations[i]->WaitForEnd();
    EXPECT_EQ(generations[i]->token_ids(), expected[i]) << "request " << i;
    num_preemptions += generations[i]->finished()->usage.num_preemptions;
  }
  EXPECT_GT(num_preemptions, 0);
  EXPECT_EQ(observer_.preempted_ids().size(), static_cast<size_t>(num_preemptions));
  EXPECT_EQ(engine_->load().num_used_blocks, 0);
}

TEST_P(EngineTest, ASecondQuestionComputesOnlyWhatIsNotCached) {
  engine_->Start();
  Request first = MakeRequest(100, 4);
  SubmitOk(first)->WaitForEnd();
  Request second = MakeRequest(10, 4);
  second.prompt_token_ids.insert(second.prompt_token_ids.begin(), first.prompt_token_ids.begin(),
                                 first.prompt_token_ids.begin() + 90);
  const auto generation = SubmitOk(second);
  generation->WaitForEnd();
  EXPECT_EQ(generation->token_ids(), ExpectedTokens(second.prompt_token_ids, 4));
  EXPECT_EQ(generation->started()->num_cached_prompt_tokens, 80);
  EXPECT_EQ(generation->finished()->usage.num_cached_prompt_tokens, 80);
  EXPECT_THAT(generation->progress(), ElementsAre(100));
  int64_t num_queried = 0;
  int64_t num_cached = 0;
  int32_t num_prefilled = 0;
  for (const StepReport& step : observer_.steps()) {
    num_queried += step.num_queried_tokens;
    num_cached += step.num_cached_tokens;
    num_prefilled += step.num_prefill_tokens;
  }
  EXPECT_EQ(num_queried, 200);
  EXPECT_EQ(num_cached, 80);
  EXPECT_EQ(num_prefilled, 120);
  EXPECT_EQ(engine_->load().num_used_blocks, 0);
  EXPECT_GT(engine_->load().num_cached_blocks, 0);
}

TEST_P(EngineTest, AFlushedPrefixIsComputedAgain) {
  engine_->Start();
  const Request request = MakeRequest(100, 4);
  SubmitOk(request)->WaitForEnd();
  const auto num_dropped_blocks = engine_->FlushPrefixCache();
  ASSERT_TRUE(num_dropped_blocks.ok()) << num_dropped_blocks.status();
  EXPECT_EQ(*num_dropped_blocks, 6);
  EXPECT_EQ(engine_->load().num_cached_blocks, 0);
  const auto again = SubmitOk(request);
  again->WaitForEnd();
  EXPECT_EQ(again->finished()->usage.num_cached_prompt_tokens, 0);
}

TEST_P(EngineTest, AFlushLeavesWhatRunsAlone) {
  engine_->Start();
  const Request request = MakeRequest(100, 300);
  const auto generation = SubmitOk(request);
  generation->WaitForTokens(20);
  EXPECT_GE(engine_->FlushPrefixCache().value_or(0), 6);
  generation->WaitForEnd();
  EXPECT_EQ(generation->token_ids(), ExpectedTokens(request.prompt_token_ids, 300));
  EXPECT_EQ(engine_->load().num_used_blocks, 0);
}

TEST_P(EngineTest, RefusesAFlushAfterTheEnd) {
  engine_->Start();
  engine_->Stop(absl::UnavailableError("shutting down"));
  EXPECT_EQ(engine_->FlushPrefixCache().status().code(), absl::StatusCode::kUnavailable);
}

TEST_P(EngineTest, AShortRequestHasItsFirstTokenFourStepsAfterItsSubmission) {
  constexpr size_t kSubmittedInStep = 3;
  constexpr int32_t kNumShortTokens = 20;
  const Request long_request = MakeRequest(480, 4);
  const Request short_request = MakeRequest(kNumShortTokens, 4);
  const auto generation = std::make_shared<RecordingGenerationObserver>();
  size_t num_launches = 0;
  runner_->set_on_launch([&](const StepBatch&) {
    if (++num_launches != kSubmittedInStep) return absl::OkStatus();
    return engine_->Submit(short_request, generation).status();
  });
  engine_->Start();
  SubmitOk(long_request)->WaitForEnd();
  generation->WaitForEnd();
  EXPECT_EQ(generation->token_ids(), ExpectedTokens(short_request.prompt_token_ids, 4));
  const auto steps = runner_->launched_steps();
  size_t first_token_step = 0;
  for (size_t i = steps.size(); i-- > 0;) {
    for (const auto& chunk : steps[i]) {
      if (chunk.samples && chunk.num_context_tokens == kNumShortTokens) first_token_step = i + 1;
    }
  }
  EXPECT_GT(first_token_step, kSubmittedInStep);
  EXPECT_LE(first_token_step, kSubmittedInStep + 4);
}

TEST_P(EngineTest, ChoicesShareTheirPromptAndFinishTogether) {
  for (const bool prefix_caching : {true, false}) {
    EngineOptions options = SmallOptions();
    options.prefix_caching = prefix_caching;
    Reset(options);
    std::vector<uint64_t> bound_seeds;
    runner_->set_on_bind([&](const SamplingParams& params) { bound_seeds.push_back(params.seed); });
    Request request = MakeRequest(100, 12);
    request.num_choices = 4;
    request.sampling.seed = ~uint64_t{0};
    const int32_t num_steps_before = static_cast<int32_t>(observer_.steps().size());
    const auto generation = SubmitOk(request);
    engine_->Start();
    generation->WaitForEnd();
    EXPECT_EQ(generation->num_endings(), 1);
    const auto choices = generation->choices();
    ASSERT_EQ(choices.size(), 4u);
    for (const auto& [index, choice] : choices) {
      EXPECT_EQ(choice.token_ids, ExpectedTokens(request.prompt_token_ids, 12)) << index;
      ASSERT_EQ(choice.endings.size(), 1u);
      EXPECT_EQ(choice.endings[0].reason, FinishReason::kLength);
    }
    EXPECT_THAT(bound_seeds, ElementsAre(~uint64_t{0}, 0u, 1u, 2u)) << "seed + index";
    const Usage usage = generation->finished()->usage;
    EXPECT_EQ(usage.num_prompt_tokens, 100);
    EXPECT_EQ(usage.num_cached_prompt_tokens, 0);
    EXPECT_EQ(usage.num_generated_tokens, 48);
    EXPECT_THAT(generation->progress(), ElementsAre(32, 64, 96, 100));
    int32_t num_prefill_tokens = 0;
    int32_t num_recomputed_tokens = 0;
    const auto steps = observer_.steps();
    for (size_t i = static_cast<size_t>(num_steps_before); i < steps.size(); ++i) {
      num_prefill_tokens += steps[i].num_prefill_tokens;
      num_recomputed_tokens += steps[i].num_recomputed_tokens;
    }
    EXPECT_EQ(num_prefill_tokens, 100 + 3 * 4) << "each other choice computes the partial block";
    EXPECT_EQ(num_recomputed_tokens, 3 * 4);
    EXPECT_TRUE(engine_->WaitUntilIdle(absl::InfiniteDuration()));
    EXPECT_EQ(engine_->load().num_used_blocks, 0);
    EXPECT_EQ(engine_->load().num_waiting_requests, 0);
  }
}

TEST_P(EngineTest, ARequestLivesUntilItsLastChoiceHasEnded) {
  // The first choice to draw ends at once, the others later.
  int num_drawn = 0;
  next_token_ = [&num_drawn](const std::vector<int32_t>& history) {
    return num_drawn++ == 0 || history.size() >= 30 ? kEos : 'a';
  };
  engine_->Start();
  Request request = MakeRequest(20, 100);
  request.num_choices = 3;
  const auto generation = SubmitOk(request);
  generation->WaitForEnd();
  const auto choices = generation->choices();
  ASSERT_EQ(choices.size(), 3u);
  EXPECT_EQ(choices.at(0).token_ids.size(), 1u);
  EXPECT_EQ(choices.at(1).token_ids.size(), 11u);
  EXPECT_EQ(choices.at(2).token_ids.size(), 11u);
  EXPECT_EQ(generation->finished()->ending.reason, FinishReason::kEndOfSequence);
  EXPECT_EQ(observer_.ended().size(), 1u);
  EXPECT_THAT(observer_.times_to_first_token(), testing::SizeIs(1));
}

TEST_P(EngineTest, ACancelEndsAllChoices) {
  engine_->Start();
  // After choice 0 has ended, too.
  for (const bool first_has_ended : {false, true}) {
    int num_drawn = 0;
    next_token_ = [&](const std::vector<int32_t>&) {
      return first_has_ended && num_drawn++ == 0 ? kEos : 'a';
    };
    Request request = MakeRequest(20, 480);
    request.num_choices = 16;  // more than run at once
    RequestTicket ticket = 0;
    const auto generation = SubmitOk(request, &ticket);
    generation->WaitForTokens(1);
    engine_->Cancel(ticket, absl::CancelledError("gone"));
    generation->WaitForEnd();
    EXPECT_EQ(generation->failure().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(generation->num_endings(), 1);
    EXPECT_TRUE(engine_->WaitUntilIdle(absl::InfiniteDuration()));
    EXPECT_EQ(engine_->load().num_used_blocks, 0);
    EXPECT_EQ(engine_->load().num_waiting_requests, 0);
    SubmitOk(MakeRequest(4, 1))->WaitForEnd();  // also waits until next_token_ is free
    engine_->FlushPrefixCache().IgnoreError();
  }
}

TEST_P(EngineTest, PreemptedChoicesYieldWhatTheyWouldAlone) {
  EngineOptions options = SmallOptions();
  options.num_blocks = 14;
  options.max_model_len = 192;
  Reset(options);
  engine_->Start();
  Request request = MakeRequest(20, 100);
  request.num_choices = 8;
  const auto generation = SubmitOk(request);
  generation->WaitForEnd();
  for (const auto& [index, choice] : generation->choices()) {
    EXPECT_EQ(choice.token_ids, ExpectedTokens(request.prompt_token_ids, 100)) << index;
  }
  EXPECT_GT(generation->finished()->usage.num_preemptions, 0);
  EXPECT_EQ(engine_->load().num_used_blocks, 0);
}

TEST_P(EngineTest, RefusesMoreChoicesThanTheLimit) {
  for (const int32_t num_choices : {0, 17}) {
    Request request = MakeRequest(4, 4);
    request.num_choices = num_choices;
    const auto refused = engine_->Submit(request, std::make_shared<RecordingGenerationObserver>());
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("is not in [1, 16]"));
  }
}

TEST_P(EngineTest, EndsAtTheEndOfSequenceTokenAndHidesItsText) {
  next_token_ = [](const std::vector<int32_t>& history) { return history.size() < 6 ? 'a' : kEos; };
  engine_->Start();
  const auto generation = SubmitOk(MakeRequest(4, 100));
  generation->WaitForEnd();
  EXPECT_EQ(generation->finished()->ending.reason, FinishReason::kEndOfSequence);
  EXPECT_EQ(generation->finished()->ending.matched_token_id, kEos);
  EXPECT_EQ(generation->text(), "aa");
  EXPECT_THAT(generation->token_ids(), ElementsAre('a', 'a', kEos));
}

TEST_P(EngineTest, IgnoresTheEndOfSequenceTokenWhereAskedTo) {
  next_token_ = [](const std::vector<int32_t>&) { return kEos; };
  engine_->Start();
  Request request = MakeRequest(4, 5);
  request.stopping.ignore_eos = true;
  const auto generation = SubmitOk(request);
  generation->WaitForEnd();
  EXPECT_EQ(generation->finished()->ending.reason, FinishReason::kLength);
  EXPECT_EQ(generation->token_ids().size(), 5u);
}

TEST_P(EngineTest, EndsAtAStopTokenAndCanShowIt) {
  next_token_ = [](const std::vector<int32_t>& history) { return history.size() < 6 ? 'a' : '!'; };
  engine_->Start();
  Request request = MakeRequest(4, 100);
  request.stopping.stop_token_ids = {'!'};
  request.stopping.include_stop_in_output = true;
  const auto generation = SubmitOk(request);
  generation->WaitForEnd();
  EXPECT_EQ(generation->finished()->ending.reason, FinishReason::kStopToken);
  EXPECT_EQ(generation->text(), "aa!");
}

TEST_P(EngineTest, EndsAtAStopStringAcrossTokens) {
  const std::string output = "the end is near";
  next_token_ = [&output](const std::vector<int32_t>& history) {
    return static_cast<int32_t>(output[history.size() - 4]);
  };
  engine_->Start();
  Request request = MakeRequest(4, 15);
  request.stopping.stop_strings = {"end is"};
  const auto generation = SubmitOk(request);
  generation->WaitForEnd();
  EXPECT_EQ(generation->finished()->ending.reason, FinishReason::kStopString);
  EXPECT_EQ(generation->finished()->ending.matched_stop_string, "end is");
  EXPECT_EQ(generation->text(), "the ");
}

TEST_P(EngineTest, PassesTidalModeOnlyBeyondTheBudget) {
  engine_->Start();
  Request request = MakeRequest(10, 12);
  request.attention = {.mode = AttentionMode::kTidal, .selection = {.token_budget = 16}};
  const auto generation = SubmitOk(request);
  generation->WaitForEnd();
  for (const auto& step : runner_->launched_steps()) {
    EXPECT_EQ(step[0].mode,
              step[0].num_context_tokens > 16 ? AttentionMode::kTidal : AttentionMode::kFull);
  }
  // Decodes see contexts of 11..21 tokens in 8 layers, 4 of them sparse.
  int64_t attended = 0;
  int64_t available = 0;
  for (int64_t context = 11; context <= 21; ++context) {
    available += 8 * context;
    attended += context > 16 ? 4 * context + 4 * 16 : 8 * context;
  }
  EXPECT_EQ(generation->finished()->usage.num_available_tokens, available);
  EXPECT_EQ(generation->finished()->usage.num_attended_tokens, attended);
}

TEST_P(EngineTest, RefusesWhatCanNeverFitWithNumbers) {
  EngineOptions options = SmallOptions();
  options.num_blocks = 10;
  Reset(options);
  const auto refused =
      engine_->Submit(MakeRequest(100, 61), std::make_shared<RecordingGenerationObserver>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("= 161 tokens, more than the 160"));
  EXPECT_THAT(observer_.rejections(), ElementsAre(RejectionReason::kNeverFits));
}

TEST_P(EngineTest, RunsARequestThatFillsTheWholeCache) {
  EngineOptions options = SmallOptions();
  options.num_blocks = 10;
  Reset(options);
  engine_->Start();
  const auto generation = SubmitOk(MakeRequest(100, 60));
  generation->WaitForEnd();
  EXPECT_EQ(generation->token_ids().size(), 60u);
}

TEST_P(EngineTest, RefusesALiveRequestId) {
  const Request request = MakeRequest(4, 4);
  const auto first = SubmitOk(request);
  const auto second = engine_->Submit(request, std::make_shared<RecordingGenerationObserver>());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  engine_->Start();
  first->WaitForEnd();
  SubmitOk(request)->WaitForEnd();
}

TEST_P(EngineTest, BoundsTheQueueByRequests) {
  for (int i = 0; i < 16; ++i) SubmitOk(MakeRequest(4, 4));
  const auto refused =
      engine_->Submit(MakeRequest(4, 4), std::make_shared<RecordingGenerationObserver>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("16 requests wait, limit 16"));
  EXPECT_THAT(observer_.rejections(), ElementsAre(RejectionReason::kQueuedRequests));
}

TEST_P(EngineTest, BoundsTheQueueByPromptTokens) {
  EngineOptions options = SmallOptions();
  options.max_queued_tokens = 100;
  Reset(options);
  SubmitOk(MakeRequest(90, 4));
  const auto refused =
      engine_->Submit(MakeRequest(11, 4), std::make_shared<RecordingGenerationObserver>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(observer_.rejections(), ElementsAre(RejectionReason::kQueuedTokens));
  SubmitOk(MakeRequest(10, 4));
}

TEST_P(EngineTest, CancelsAQueuedRequest) {
  RequestTicket ticket = 0;
  const auto generation = SubmitOk(MakeRequest(4, 4), &ticket);
  engine_->Cancel(ticket, absl::CancelledError("gone"));
  engine_->Start();
  generation->WaitForEnd();
  EXPECT_EQ(generation->failure().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(generation->started().has_value());
  EXPECT_EQ(observer_.ended()[0].stage, RequestStage::kQueued);
}

TEST_P(EngineTest, CancelDuringPrefillFreesBlocksBeforeTheNextStep) {
  std::latch entered(1);
  std::latch release(1);
  BlockFirstStep(&entered, &release);
  engine_->Start();
  RequestTicket ticket = 0;
  const auto generation = SubmitOk(MakeRequest(100, 4), &ticket);
  entered.wait();
  engine_->Cancel(ticket, absl::CancelledError("gone"));
  release.count_down();
  generation->WaitForEnd();
  EXPECT_EQ(engine_->load().num_used_blocks, 0);
  EXPECT_EQ(runner_->launched_steps().size(), 1u);
  EXPECT_EQ(observer_.ended()[0].stage, RequestStage::kPrefill);
}

TEST_P(EngineTest, CancelDuringDecodeLeavesOthersAlone) {
  engine_->Start();
  const Request other = MakeRequest(4, 300);
  const std::vector<int32_t> expected = ExpectedTokens(other.prompt_token_ids, 300);
  const auto kept = SubmitOk(other);
  RequestTicket ticket = 0;
  const auto cancelled = SubmitOk(MakeRequest(4, 500), &ticket);
  cancelled->WaitForTokens(3);
  engine_->Cancel(ticket, absl::CancelledError("gone"));
  cancelled->WaitForEnd();
  kept->WaitForEnd();
  EXPECT_EQ(kept->token_ids(), expected);
  EXPECT_EQ(engine_->load().num_used_blocks, 0);
}

TEST_P(EngineTest, EndsARequestWhoseDeadlineHasPassed) {
  std::latch entered(1);
  std::latch release(1);
  BlockFirstStep(&entered, &release);
  engine_->Start();
  Request request = MakeRequest(100, 4);
  request.deadline = clock_.Now() + absl::Seconds(5);
  const auto generation = SubmitOk(request);
  const auto queued = SubmitOk([&] {
    Request late = MakeRequest(4, 4);
    late.deadline = clock_.Now() + absl::Seconds(4);
    return late;
  }());
  entered.wait();
  clock_.Advance(absl::Seconds(6));
  release.count_down();
  generation->WaitForEnd();
  queued->WaitForEnd();
  EXPECT_EQ(generation->failure().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(queued->failure().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(engine_->load().num_used_blocks, 0);
}

// Steps of 32 tokens take 10 ms, and one has been measured.
class EngineDeadlineTest : public EngineTest {
 protected:
  EngineDeadlineTest() {
    runner_->set_on_collect([this] {
      clock_.Advance(absl::Milliseconds(10));
      return absl::OkStatus();
    });
    engine_->Start();
    SubmitOk(MakeRequest(32, 1))->WaitForEnd();
  }

  Request WithDeadline(Request request, absl::Duration in) {
    request.deadline = clock_.Now() + in;
    return request;
  }
};

TEST_P(EngineDeadlineTest, RefusesWhatCannotBeInTimeWithTheEstimate) {
  // 480 tokens at 3200 a second.
  const auto late = SubmitOk(WithDeadline(MakeRequest(480, 1), absl::Milliseconds(140)));
  late->WaitForEnd();
  EXPECT_EQ(late->failure().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(late->failure().message(),
            "the deadline in 140ms would pass before the first token: 480 prompt tokens are to be "
            "computed until then, which takes 150ms at the fastest measured rate of 3200 tokens a "
            "second");
  EXPECT_FALSE(late->started().has_value());
  EXPECT_THAT(observer_.rejections(), ElementsAre(RejectionReason::kDeadline));
  EXPECT_TRUE(engine_->WaitUntilIdle(absl::InfiniteDuration()));
  EXPECT_EQ(engine_->load().num_waiting_requests, 0);
  EXPECT_EQ(engine_->load().num_waiting_prompt_tokens, 0);
  EXPECT_EQ(observer_.ended().size(), 1u) << "it never entered the queue";
}

TEST_P(EngineDeadlineTest, TakesWhatMayBeInTime) {
  const auto generation = SubmitOk(WithDeadline(MakeRequest(480, 1), absl::Milliseconds(500)));
  generation->WaitForEnd();
  EXPECT_TRUE(generation->finished().has_value());
}

TEST_P(EngineDeadlineTest, CountsOnlyWhatIsNotCached) {
  const Request request = MakeRequest(480, 1);
  SubmitOk(request)->WaitForEnd();
  const auto again = SubmitOk(WithDeadline(request, absl::Milliseconds(100)));
  again->WaitForEnd();
  EXPECT_TRUE(again->finished().has_value());
}

TEST_P(EngineDeadlineTest, TakesEverythingBeforeAStepHasBeenMeasured) {
  Reset(SmallOptions());
  engine_->Start();
  const auto generation = SubmitOk(WithDeadline(MakeRequest(480, 1), absl::Milliseconds(1)));
  generation->WaitForEnd();
  EXPECT_TRUE(generation->finished().has_value()) << "this clock stands still";
}

INSTANTIATE_TEST_SUITE_P(StepsInFlight, EngineDeadlineTest, ::testing::Values(1, 2),
                         ::testing::PrintToStringParamName());

TEST_P(EngineTest, PhasesAddUpToEndToEnd) {
  runner_->set_on_collect([this] {
    clock_.Advance(absl::Milliseconds(10));
    return absl::OkStatus();
  });
  Request request = MakeRequest(64, 5);
  clock_.Advance(absl::Milliseconds(3));
  const auto generation = SubmitOk(request);
  engine_->Start();
  generation->WaitForEnd();
  const Timings timings = generation->finished()->timings;
  EXPECT_EQ(timings.queue, absl::Milliseconds(3));
  EXPECT_EQ(timings.prefill, absl::Milliseconds(20));
  EXPECT_EQ(timings.decode, absl::Milliseconds(40));
  EXPECT_EQ(timings.end_to_end, timings.queue + timings.prefill + timings.decode);
  EXPECT_EQ(timings.time_to_first_token, absl::Milliseconds(23));
  EXPECT_THAT(observer_.times_to_first_token(), ElementsAre(absl::Milliseconds(23)));
  EXPECT_EQ(observer_.inter_token_latencies(),
            std::vector<absl::Duration>(4, absl::Milliseconds(10)));
}

TEST_P(EngineTest, AFaultFailsEveryRequestAndIsReported) {
  runner_->set_on_launch([](const StepBatch&) { return absl::InternalError("device lost"); });
  const auto first = SubmitOk(MakeRequest(4, 4));
  const auto second = SubmitOk(MakeRequest(4, 4));
  engine_->Start();
  first->WaitForEnd();
  second->WaitForEnd();
  EXPECT_EQ(first->failure().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(second->failure().message()), HasSubstr("device lost"));
  engine_->Stop(absl::OkStatus());
  EXPECT_EQ(observer_.fault().code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(engine_->health().ok());
  const auto refused =
      engine_->Submit(MakeRequest(4, 4), std::make_shared<RecordingGenerationObserver>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInternal);
}

TEST_P(EngineTest, AFaultInCollectFailsEveryRequestToo) {
  runner_->set_on_collect([] { return absl::InternalError("device lost"); });
  const auto generation = SubmitOk(MakeRequest(4, 4));
  engine_->Start();
  generation->WaitForEnd();
  EXPECT_THAT(std::string(generation->failure().message()), HasSubstr("device lost"));
  engine_->Stop(absl::OkStatus());
  EXPECT_EQ(observer_.fault().code(), absl::StatusCode::kInternal);
}

TEST_P(EngineTest, DescribesWhatItHoldsBeforeTheNextStep) {
  std::latch entered(1);
  std::latch release(1);
  BlockFirstStep(&entered, &release);
  engine_->Start();
  Request request = MakeRequest(100, 4);
  request.priority = 3;
  request.deadline = clock_.Now() + absl::Seconds(60);
  const auto running = SubmitOk(request);
  entered.wait();
  std::promise<EngineDebugState> described;
  engine_->RequestDebugState([&described](const absl::StatusOr<EngineDebugState>& state) {
    ASSERT_TRUE(state.ok()) << state.status();
    described.set_value(*state);
  });
  clock_.Advance(absl::Seconds(2));
  release.count_down();
  const EngineDebugState state = described.get_future().get();
  running->WaitForEnd();
  EXPECT_EQ(state.load.num_running_requests, 1);
  ASSERT_EQ(state.sequences.size(), 1u);
  const SequenceDebugState& sequence = state.sequences[0];
  EXPECT_EQ(sequence.request_id, request.id);
  EXPECT_EQ(sequence.stage, RequestStage::kPrefill);
  EXPECT_EQ(sequence.priority, 3);
  EXPECT_EQ(sequence.age, absl::Seconds(2));
  EXPECT_EQ(sequence.time_left, absl::Seconds(58));
  EXPECT_EQ(sequence.since_token, absl::InfiniteDuration());
  EXPECT_EQ(sequence.num_prompt_tokens, 100);
  EXPECT_EQ(sequence.num_computed_tokens, 32);
  EXPECT_EQ(sequence.num_blocks, 7);
  EXPECT_EQ(sequence.max_new_tokens, 4);
}

TEST_P(EngineTest, SaysWhyItDescribesNothingAfterTheEnd) {
  engine_->Start();
  engine_->Stop(absl::UnavailableError("shutting down"));
  absl::Status refusal;
  engine_->RequestDebugState(
      [&refusal](const absl::StatusOr<EngineDebugState>& state) { refusal = state.status(); });
  EXPECT_EQ(refusal, absl::UnavailableError("shutting down"));
}

// What is drawn for a sequence that has ended meanwhile is counted nowhere.
TEST_P(EngineTest, CountsNoTokenBeyondTheEnd) {
  next_token_ = [](const std::vector<int32_t>& history) { return history.size() < 7 ? 1 : kEos; };
  engine_->Start();
  Request request = MakeRequest(4, 100);
  request.attention = {.mode = AttentionMode::kTidal, .selection = {.token_budget = 2}};
  const auto generation = SubmitOk(request);
  generation->WaitForEnd();
  engine_->Stop(absl::UnavailableError("the test is over"));
  EXPECT_EQ(generation->token_ids(), (std::vector<int32_t>{1, 1, 1, kEos}));
  const Usage usage = generation->finished()->usage;
  EXPECT_EQ(usage.num_generated_tokens, 4);
  int64_t num_generated = 0;
  int64_t num_attended = 0;
  int64_t num_available = 0;
  for (const StepReport& step : observer_.steps()) {
    num_generated += step.num_generated_tokens;
    num_attended += step.num_attended_tokens;
    num_available += step.num_available_tokens;
  }
  EXPECT_EQ(num_generated, 4);
  EXPECT_EQ(num_attended, usage.num_attended_tokens);
  EXPECT_EQ(num_available, usage.num_available_tokens);
  EXPECT_EQ(num_available, 8 * (5 + 6 + 7));  // 8 layers, decodes with 5 to 7 tokens of context
}

TEST_P(EngineTest, NeverLaunchesADecodeBeyondTheLengthAskedFor) {
  engine_->Start();
  SubmitOk(MakeRequest(4, 6))->WaitForEnd();
  engine_->Stop(absl::UnavailableError("the test is over"));
  EXPECT_EQ(runner_->launched_steps().size(), 6u);
}

// A device that takes a while for each step, one after the other.
class SlowDevice {
 public:
  explicit SlowDevice(FakeModelRunner* runner) {
    runner->set_on_launch([this](const StepBatch&) {
      free_at_ = std::max(free_at_, absl::Now()) + kStep;
      ends_.push_back(free_at_);
      return absl::OkStatus();
    });
    runner->set_on_collect([this] {
      absl::SleepFor(ends_.front() - absl::Now());
      ends_.pop_front();
      return absl::OkStatus();
    });
  }

  static constexpr absl::Duration kStep = absl::Milliseconds(10);

 private:
  absl::Time free_at_ = absl::InfinitePast();
  std::deque<absl::Time> ends_;
};

class SlowReader : public RecordingGenerationObserver {
 public:
  void OnDelta(GenerationDelta delta) override {
    absl::SleepFor(absl::Milliseconds(6));
    RecordingGenerationObserver::OnDelta(std::move(delta));
  }
};

TEST_P(EngineTest, WhatATokenCostsOnTheHostIsSpentWhileTheNextStepComputes) {
  constexpr int32_t kNumTokens = 30;
  SlowDevice device(runner_.get());
  const auto reader = std::make_shared<SlowReader>();
  ASSERT_TRUE(engine_->Submit(MakeRequest(4, kNumTokens), reader).ok());
  const absl::Time begin = absl::Now();
  engine_->Start();
  reader->WaitForEnd();
  const double steps = absl::FDivDuration(absl::Now() - begin, SlowDevice::kStep * kNumTokens);
  if (GetParam() == 1) {
    EXPECT_GE(steps, 1.6);  // 10 ms and 6 ms a token
  } else {
    EXPECT_LT(steps, 1.4);  // 10 ms, and what a busy machine adds
  }
}

TEST_P(EngineTest, StopFailsWhatIsLiveWithItsReason) {
  engine_->Start();
  const auto generation = SubmitOk(MakeRequest(4, 500));
  generation->WaitForTokens(1);
  engine_->Stop(absl::UnavailableError("shutting down"));
  EXPECT_TRUE(generation->num_endings() == 1);
  if (!generation->finished().has_value()) {
    EXPECT_EQ(generation->failure().code(), absl::StatusCode::kUnavailable);
  }
  const auto refused =
      engine_->Submit(MakeRequest(4, 4), std::make_shared<RecordingGenerationObserver>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
}

TEST_P(EngineTest, WaitUntilIdleTimesOutWhileARequestLives) {
  SubmitOk(MakeRequest(4, 4));
  EXPECT_FALSE(engine_->WaitUntilIdle(absl::Milliseconds(1)));
}

// Threads that submit and cancel at random: every request ends once, and nothing is left behind.
TEST_P(EngineTest, ManyThreadsSubmitAndCancelAtRandom) {
  EngineOptions options = SmallOptions();
  options.num_blocks = 24;
  options.max_model_len = 200;
  Reset(options);
  engine_->Start();
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([this, thread] {
      std::mt19937 random(static_cast<uint32_t>(thread));
      for (int i = 0; i < 100; ++i) {
        Request request;
        request.id = absl::StrCat(thread, "-", i);
        // Of few kinds, so that many find others' blocks.
        request.prompt_token_ids.assign(1 + random() % 100, static_cast<int32_t>(random() % 4));
        request.stopping.max_new_tokens = static_cast<int32_t>(1 + random() % 90);
        request.arrival_time = clock_.Now();
        request.num_choices = static_cast<int32_t>(1 + random() % 3);
        const auto expected =
            ExpectedTokens(request.prompt_token_ids, request.stopping.max_new_tokens);
        const auto observer = std::make_shared<RecordingGenerationObserver>();
        const auto ticket = engine_->Submit(request, observer);
        ASSERT_TRUE(ticket.ok()) << ticket.status();
        const bool cancels = random() % 3 == 0;
        if (cancels) {
          if (random() % 2 == 0) observer->WaitForTokens(1);
          engine_->Cancel(*ticket, absl::CancelledError("gone"));
        }
        if (random() % 50 == 0) {
          EXPECT_TRUE(engine_->FlushPrefixCache().ok());
        }
        observer->WaitForEnd();
        EXPECT_EQ(observer->num_endings(), 1);
        if (observer->finished().has_value()) {
          const auto choices = observer->choices();
          EXPECT_EQ(choices.size(), static_cast<size_t>(request.num_choices));
          for (const auto& [index, choice] : choices) EXPECT_EQ(choice.token_ids, expected);
        } else {
          EXPECT_TRUE(cancels);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(engine_->WaitUntilIdle(absl::InfiniteDuration()));
  const EngineLoad load = observer_.load();
  EXPECT_EQ(load.num_used_blocks, 0);
  EXPECT_EQ(load.num_running_requests, 0);
  EXPECT_EQ(load.num_waiting_requests, 0);
  EXPECT_EQ(load.num_waiting_prompt_tokens, 0);
  EXPECT_EQ(observer_.ended().size(), 400u);
}

INSTANTIATE_TEST_SUITE_P(StepsInFlight, EngineTest, ::testing::Values(1, 2),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace tidal
