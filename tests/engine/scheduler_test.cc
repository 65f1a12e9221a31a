#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "tests/engine/random_walk.h"
#include "tests/engine/recording_observer.h"

namespace tidal {
namespace {

using ::testing::ElementsAre;

// Makes sequences and plays the part of the engine: whatever samples gets a token.
class SchedulerTest : public ::testing::Test {
 protected:
  // A prompt unlike any other's.
  Sequence* AddSequence(Scheduler* scheduler, int32_t num_prompt_tokens, int32_t priority = 0) {
    const auto token_id = static_cast<int32_t>(1000 + last_ticket_);
    return AddSequence(scheduler,
                       std::vector<int32_t>(static_cast<size_t>(num_prompt_tokens), token_id),
                       priority);
  }

  Sequence* AddSequence(Scheduler* scheduler, std::vector<int32_t> prompt_token_ids,
                        int32_t priority = 0) {
    Request request;
    request.prompt_token_ids = std::move(prompt_token_ids);
    request.priority = priority;
    return AddSequence(scheduler, std::move(request));
  }

  Sequence* AddSequence(Scheduler* scheduler, Request request) {
    Sequence* sequence = MakeSequence(std::move(request));
    scheduler->Enqueue(sequence);
    return sequence;
  }

  Sequence* MakeSequence(std::vector<int32_t> prompt_token_ids, int32_t priority) {
    Request request;
    request.prompt_token_ids = std::move(prompt_token_ids);
    request.priority = priority;
    return MakeSequence(std::move(request));
  }

  // One that waits nowhere yet.
  Sequence* MakeSequence(Request request) {
    request.stopping.max_new_tokens = 1 << 20;
    sequences_.push_back(
        std::make_unique<Sequence>(++last_ticket_, std::move(request), OutputText(nullptr, {})));
    return sequences_.back().get();
  }

  // The sequence is not looked at any more.
  void Forget(const Sequence* sequence) {
    std::erase_if(sequences_, [&](const auto& owned) { return owned.get() == sequence; });
  }

  static StepPlan Step(Scheduler* scheduler) {
    StepPlan plan = scheduler->PlanStep();
    std::vector<Sequence*> sampling;
    for (const ScheduledChunk& chunk : plan.chunks) {
      if (chunk.samples()) sampling.push_back(chunk.sequence);
    }
    scheduler->MarkLaunched(plan);
    for (Sequence* sequence : sampling) sequence->AppendToken(2);
    return plan;
  }

  static std::vector<int32_t> ChunkSizes(const StepPlan& plan) {
    std::vector<int32_t> sizes;
    for (const ScheduledChunk& chunk : plan.chunks) sizes.push_back(chunk.num_tokens);
    return sizes;
  }

  std::vector<std::unique_ptr<Sequence>> sequences_;
  RequestTicket last_ticket_ = 0;
};

TEST_F(SchedulerTest, PrefillsInChunksOfTheStepsTokens) {
  Scheduler scheduler({.max_batch_tokens = 32, .max_running_requests = 4, .num_blocks = 64});
  AddSequence(&scheduler, 70);
  EXPECT_THAT(ChunkSizes(Step(&scheduler)), ElementsAre(32));
  EXPECT_THAT(ChunkSizes(Step(&scheduler)), ElementsAre(32));
  EXPECT_THAT(ChunkSizes(Step(&scheduler)), ElementsAre(6));
  EXPECT_THAT(ChunkSizes(Step(&scheduler)), ElementsAre(1));
}

Request SparseRequest(int32_t num_prompt_tokens, int32_t correction_interval) {
  Request request;
  request.prompt_token_ids.assign(static_cast<size_t>(num_prompt_tokens), 7);
  request.attention = {.mode = AttentionMode::kTidal,
                       .selection = {.token_budget = 8},
                       .correction_interval = correction_interval};
  return request;
}

TEST_F(SchedulerTest, CorrectsAfterEachInterval) {
  Scheduler scheduler({.max_batch_tokens = 64, .max_running_requests = 4, .num_blocks = 64});
  Sequence* sequence = AddSequence(&scheduler, SparseRequest(30, 4));
  EXPECT_THAT(ChunkSizes(Step(&scheduler)), ElementsAre(30));
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 3; ++i) {
      const StepPlan plan = scheduler.PlanStep();
      EXPECT_THAT(ChunkSizes(plan), ElementsAre(1));
      EXPECT_EQ(plan.chunks[0].mode(), AttentionMode::kTidal);
      scheduler.MarkLaunched(plan);
      sequence->AppendToken(2);
      EXPECT_EQ(sequence->num_exact_tokens, 30 + 4 * round) << "what is sparse is not exact";
    }
    const StepPlan plan = scheduler.PlanStep();
    EXPECT_THAT(ChunkSizes(plan), ElementsAre(4));
    EXPECT_EQ(plan.chunks[0].mode(), AttentionMode::kFull);
    EXPECT_TRUE(plan.chunks[0].is_decode);
    EXPECT_TRUE(plan.chunks[0].samples());
    scheduler.MarkLaunched(plan);
    sequence->AppendToken(2);
    EXPECT_EQ(sequence->num_exact_tokens, 34 + 4 * round);
    EXPECT_EQ(sequence->num_computed_tokens, sequence->num_exact_tokens);
  }
}

TEST_F(SchedulerTest, ACorrectionTakesWhatDecodesLeaveAndIsOnlyDrawnFromAtItsEnd) {
  Scheduler scheduler({.max_batch_tokens = 4, .max_running_requests = 4, .num_blocks = 64});
  Sequence* corrected = AddSequence(&scheduler, SparseRequest(30, 8));
  while (corrected->num_generated_tokens() < 5) Step(&scheduler);
  Sequence* neighbour = AddSequence(&scheduler, 3);
  while (corrected->num_generated_tokens() < 8) Step(&scheduler);
  ASSERT_GT(neighbour->num_generated_tokens(), 0);
  // Eight tokens, three at a time beside the neighbour's decode.
  for (const int32_t num_tokens : {3, 3, 2}) {
    const int32_t before = neighbour->num_generated_tokens();
    EXPECT_EQ(corrected->num_generated_tokens(), 8);
    const StepPlan plan = Step(&scheduler);
    EXPECT_THAT(ChunkSizes(plan), ElementsAre(1, num_tokens));
    EXPECT_EQ(plan.chunks[1].sequence, corrected);
    EXPECT_EQ(neighbour->num_generated_tokens(), before + 1);
  }
  EXPECT_EQ(corrected->num_generated_tokens(), 9);
  EXPECT_EQ(corrected->num_exact_tokens, 38);
}

TEST_F(SchedulerTest, ACorrectionWaitsForTokensThatAreNotReadYet) {
  Scheduler scheduler({.max_batch_tokens = 64, .max_running_requests = 4, .num_blocks = 64});
  Sequence* sequence = AddSequence(&scheduler, SparseRequest(30, 2));
  Step(&scheduler);
  const StepPlan decode = scheduler.PlanStep();
  scheduler.MarkLaunched(decode);
  EXPECT_TRUE(scheduler.PlanStep(/*may_preempt=*/false).chunks.empty());
  sequence->AppendToken(2);
  EXPECT_THAT(ChunkSizes(scheduler.PlanStep(/*may_preempt=*/false)), ElementsAre(2));
}

TEST_F(SchedulerTest, APreemptedCorrectionIsTakenUpWhereItsTurnIs) {
  Scheduler scheduler({.max_batch_tokens = 4, .max_running_requests = 4, .num_blocks = 5});
  Sequence* older = AddSequence(&scheduler, 30);
  Sequence* corrected = AddSequence(&scheduler, SparseRequest(20, 8));
  while (!corrected->is_correcting) Step(&scheduler);
  while (corrected->num_preemptions == 0) Step(&scheduler);
  EXPECT_FALSE(corrected->is_correcting);
  EXPECT_EQ(corrected->num_exact_tokens, 0);
  const int32_t num_generated_tokens = corrected->num_generated_tokens();
  scheduler.Remove(older);
  while (corrected->num_generated_tokens() == num_generated_tokens) Step(&scheduler);
  EXPECT_EQ(corrected->num_exact_tokens, corrected->num_computed_tokens - 1)
      << "all was computed again but the last token, which is decoded as it would have been";
}

TEST_F(SchedulerTest, DecodesComeBeforePrefillInEveryStep) {
  Scheduler scheduler({.max_batch_tokens = 16, .max_running_requests = 4, .num_blocks = 640});
  Sequence* short_one = AddSequence(&scheduler, 4);
  Step(&scheduler);
  AddSequence(&scheduler, 1000);
  for (int step = 0; step < 20; ++step) {
    const int32_t before = short_one->num_generated_tokens();
    const StepPlan plan = Step(&scheduler);
    EXPECT_EQ(plan.chunks[0].sequence, short_one);
    EXPECT_TRUE(plan.chunks[0].is_decode);
    EXPECT_EQ(plan.chunks[1].num_tokens, 15);
    EXPECT_EQ(short_one->num_generated_tokens(), before + 1);
  }
}

TEST_F(SchedulerTest, SeveralPromptsShareAStep) {
  Scheduler scheduler({.max_batch_tokens = 32, .max_running_requests = 8, .num_blocks = 64});
  AddSequence(&scheduler, 10);
  AddSequence(&scheduler, 10);
  AddSequence(&scheduler, 50);
  EXPECT_THAT(ChunkSizes(Step(&scheduler)), ElementsAre(10, 10, 12));
  EXPECT_THAT(ChunkSizes(Step(&scheduler)), ElementsAre(1, 1, 30));
}

TEST_F(SchedulerTest, RunsNoMoreThanItsLimit) {
  Scheduler scheduler({.max_batch_tokens = 64, .max_running_requests = 2, .num_blocks = 64});
  for (int i = 0; i < 3; ++i) AddSequence(&scheduler, 4);
  Step(&scheduler);
  EXPECT_EQ(scheduler.num_running(), 2);
  EXPECT_EQ(scheduler.num_waiting(), 1);
  EXPECT_EQ(scheduler.num_waiting_prompt_tokens(), 4);
  scheduler.Remove(sequences_[0].get());
  Step(&scheduler);
  EXPECT_EQ(scheduler.num_waiting(), 0);
}

TEST_F(SchedulerTest, HigherPriorityLeavesTheQueueFirst) {
  Scheduler scheduler({.max_batch_tokens = 64, .max_running_requests = 1, .num_blocks = 64});
  AddSequence(&scheduler, 4);
  Sequence* urgent = AddSequence(&scheduler, 4, /*priority=*/5);
  EXPECT_THAT(Step(&scheduler).admitted, ElementsAre(urgent));
}

TEST_F(SchedulerTest, PreemptsNewestSequenceWhenBlocksRunOut) {
  Scheduler scheduler({.max_batch_tokens = 64, .max_running_requests = 4, .num_blocks = 5});
  Sequence* oldest = AddSequence(&scheduler, 30);
  Sequence* newest = AddSequence(&scheduler, 14);
  while (newest->num_preemptions == 0) Step(&scheduler);
  EXPECT_EQ(oldest->num_preemptions, 0);
  EXPECT_TRUE(newest->block_table.empty());
  EXPECT_EQ(newest->num_computed_tokens, 0);
  EXPECT_EQ(newest->sampler_slot, -1);
  EXPECT_GT(newest->num_generated_tokens(), 0);
  EXPECT_EQ(scheduler.num_waiting(), 1);
}

TEST_F(SchedulerTest, RecomputesThePreemptedUpToItsLastTokenThenDecodesThat) {
  Scheduler scheduler({.max_batch_tokens = 64,
                       .max_running_requests = 4,
                       .num_blocks = 5,
                       .prefix_caching = false});
  Sequence* oldest = AddSequence(&scheduler, 30);
  Sequence* newest = AddSequence(&scheduler, 14);
  while (newest->num_preemptions == 0) Step(&scheduler);
  const int32_t num_tokens = newest->num_tokens();
  scheduler.Remove(oldest);
  StepPlan plan = Step(&scheduler);
  EXPECT_THAT(ChunkSizes(plan), ElementsAre(num_tokens - 1));
  EXPECT_FALSE(plan.chunks[0].is_decode);
  EXPECT_EQ(newest->num_tokens(), num_tokens) << "recomputation draws nothing";
  plan = Step(&scheduler);
  EXPECT_THAT(ChunkSizes(plan), ElementsAre(1));
  EXPECT_TRUE(plan.chunks[0].is_decode);
  EXPECT_EQ(newest->num_tokens(), num_tokens + 1);
}

TEST_F(SchedulerTest, NobodyOvertakesALongPromptThatWaitsForBlocks) {
  Scheduler scheduler({.max_batch_tokens = 256, .max_running_requests = 4, .num_blocks = 10});
  Sequence* running = AddSequence(&scheduler, 64);
  Step(&scheduler);
  Sequence* long_one = AddSequence(&scheduler, 120);
  AddSequence(&scheduler, 1);
  EXPECT_TRUE(Step(&scheduler).admitted.empty());
  scheduler.Remove(running);
  EXPECT_EQ(Step(&scheduler).admitted[0], long_one);
}

std::vector<int32_t> CountingTokens(int32_t count) {
  std::vector<int32_t> token_ids;
  for (int32_t i = 0; i < count; ++i) token_ids.push_back(i);
  return token_ids;
}

// Steps until `sequence` has its first token.
int StepsToFirstToken(Scheduler* scheduler, const Sequence* sequence,
                      const std::function<StepPlan(Scheduler*)>& step) {
  int num_steps = 0;
  for (; sequence->num_generated_tokens() == 0 && num_steps < 100'000; ++num_steps) {
    step(scheduler);
  }
  return num_steps;
}

TEST_F(SchedulerTest, AShortPromptHasItsFirstTokenFourStepsAfterItComesBesideALongPrefill) {
  for (const int32_t max_batch_tokens : {64, 256, 2048}) {
    for (const int num_long_prompts : {1, 3}) {
      Scheduler scheduler({.max_batch_tokens = max_batch_tokens,
                           .max_running_requests = 16,
                           .num_blocks = 4 * 100'000 / kBlockSize});
      for (int i = 0; i < 8; ++i) AddSequence(&scheduler, 4);  // these decode all the time
      Step(&scheduler);
      for (int i = 0; i < num_long_prompts; ++i) AddSequence(&scheduler, 100'000);
      Step(&scheduler);
      const Sequence* short_one = AddSequence(&scheduler, 100);
      EXPECT_LE(StepsToFirstToken(&scheduler, short_one, Step), 4)
          << max_batch_tokens << " tokens a step, " << num_long_prompts << " long prompts";
    }
  }
}

TEST_F(SchedulerTest, ALongPrefillGetsOnHoweverManyShortPromptsCome) {
  constexpr int32_t kNumTokens = 20'000;
  constexpr int32_t kMaxBatchTokens = 256;
  Scheduler scheduler({.max_batch_tokens = kMaxBatchTokens,
                       .max_running_requests = 32,
                       .num_blocks = 2 * kNumTokens / kBlockSize});
  const Sequence* long_one = AddSequence(&scheduler, kNumTokens);
  const auto step_among_short_prompts = [this](Scheduler* full) {
    // More than a step computes; each ends after its first token.
    while (full->num_waiting() < 8) AddSequence(full, 100);
    const StepPlan plan = Step(full);
    for (const ScheduledChunk& chunk : plan.chunks) {
      if (chunk.sequence->num_prompt_tokens() == kNumTokens ||
          chunk.sequence->num_generated_tokens() == 0) {
        continue;
      }
      full->Remove(chunk.sequence);
    }
    return StepPlan();
  };
  const int num_steps = StepsToFirstToken(&scheduler, long_one, step_among_short_prompts);
  EXPECT_LE(num_steps, 4 * kNumTokens / kMaxBatchTokens + 1) << "a quarter of each step";
  EXPECT_GT(num_steps, 3 * kNumTokens / kMaxBatchTokens) << "and no more, while others want some";
}

TEST_F(SchedulerTest, ALongPromptThatOthersOvertakeHasItsTurnAfterTheOlderOnes) {
  Scheduler scheduler(
      {.max_batch_tokens = 64, .max_running_requests = 8, .num_blocks = 20'000 / kBlockSize});
  AddSequence(&scheduler, 2000);
  Sequence* second = AddSequence(&scheduler, 3000);
  Step(&scheduler);
  EXPECT_EQ(second->sampler_slot, -1) << "nothing could be computed of it yet";
  Sequence* short_one = AddSequence(&scheduler, 20);
  EXPECT_THAT(Step(&scheduler).admitted, ElementsAre(short_one));
  EXPECT_LE(StepsToFirstToken(&scheduler, second, Step), (2000 + 3000) / 60);
}

TEST_F(SchedulerTest, AShortPromptOfLowerPriorityWaitsForALongOneOfAHigher) {
  Scheduler scheduler({.max_batch_tokens = 64, .max_running_requests = 8, .num_blocks = 640});
  Sequence* urgent = AddSequence(&scheduler, 640, /*priority=*/1);
  Step(&scheduler);
  Sequence* short_one = AddSequence(&scheduler, 20);
  while (urgent->num_generated_tokens() == 0) {
    EXPECT_EQ(short_one->num_generated_tokens(), 0);
    Step(&scheduler);
  }
  EXPECT_LE(StepsToFirstToken(&scheduler, short_one, Step), 1);
}

TEST_F(SchedulerTest, AQuestionAboutACachedDocumentCountsAsShort) {
  Scheduler scheduler({.max_batch_tokens = 256, .max_running_requests = 8, .num_blocks = 4096});
  Sequence* first = AddSequence(&scheduler, CountingTokens(10'000));
  StepsToFirstToken(&scheduler, first, Step);
  scheduler.Remove(first);
  AddSequence(&scheduler, 20'000);
  Step(&scheduler);
  const Sequence* second = AddSequence(&scheduler, CountingTokens(10'000));
  EXPECT_EQ(StepsToFirstToken(&scheduler, second, Step), 1);
}

TEST_F(SchedulerTest, ASecondPromptComputesOnlyWhatIsNotCached) {
  Scheduler scheduler({.max_batch_tokens = 256, .max_running_requests = 4, .num_blocks = 64});
  const std::vector<int32_t> document = CountingTokens(100);
  Sequence* first = AddSequence(&scheduler, document);
  EXPECT_THAT(ChunkSizes(Step(&scheduler)), ElementsAre(100));
  std::vector<int32_t> question = document;
  question.push_back(7);
  Sequence* second = AddSequence(&scheduler, question);
  EXPECT_THAT(ChunkSizes(Step(&scheduler)), ElementsAre(1, 101 - 96)) << "six full blocks";
  EXPECT_EQ(second->num_cached_prompt_tokens, 96);
  EXPECT_EQ(second->block_table[5], first->block_table[5]);
  EXPECT_NE(second->block_table[6], first->block_table[6]) << "never a partial block";
  scheduler.Remove(first);
  scheduler.Remove(second);
  Sequence* third = AddSequence(&scheduler, question);
  EXPECT_THAT(ChunkSizes(Step(&scheduler)), ElementsAre(5));
  EXPECT_EQ(third->num_cached_prompt_tokens, 96) << "also after the others have ended";
}

TEST_F(SchedulerTest, ComputesAtLeastOneTokenOfAPromptThatIsCachedWhole) {
  Scheduler scheduler({.max_batch_tokens = 256, .max_running_requests = 4, .num_blocks = 64});
  AddSequence(&scheduler, CountingTokens(64));
  Step(&scheduler);
  Sequence* second = AddSequence(&scheduler, CountingTokens(64));
  const StepPlan plan = Step(&scheduler);
  EXPECT_THAT(ChunkSizes(plan), ElementsAre(1, 16));
  EXPECT_EQ(second->num_generated_tokens(), 1);
}

TEST_F(SchedulerTest, FindsBlocksOfAPromptWhileItIsStillBeingComputed) {
  Scheduler scheduler({.max_batch_tokens = 64, .max_running_requests = 4, .num_blocks = 64});
  AddSequence(&scheduler, CountingTokens(64 + 40));
  Step(&scheduler);
  Sequence* second = AddSequence(&scheduler, CountingTokens(64 + 8));
  Step(&scheduler);
  EXPECT_EQ(second->num_cached_prompt_tokens, 64);
}

TEST_F(SchedulerTest, PromptsOfDifferentSaltsShareNothing) {
  Scheduler scheduler({.max_batch_tokens = 256, .max_running_requests = 4, .num_blocks = 64});
  for (const char* salt : {"one tenant", "another"}) {
    Request request;
    request.prompt_token_ids = CountingTokens(64);
    request.cache_salt = salt;
    Sequence* sequence = AddSequence(&scheduler, std::move(request));
    Step(&scheduler);
    EXPECT_EQ(sequence->num_cached_prompt_tokens, 0) << salt;
  }
}

TEST_F(SchedulerTest, SharesNothingWherePrefixCachingIsOff) {
  Scheduler scheduler({.max_batch_tokens = 256,
                       .max_running_requests = 4,
                       .num_blocks = 64,
                       .prefix_caching = false});
  for (int i = 0; i < 2; ++i) {
    Sequence* sequence = AddSequence(&scheduler, CountingTokens(64));
    Step(&scheduler);
    EXPECT_EQ(sequence->num_cached_prompt_tokens, 0);
    scheduler.Remove(sequence);
    EXPECT_EQ(scheduler.blocks().num_free_blocks(), 64);
  }
}

// Runs a sequence for `num_steps`; returns how many of its tokens' blocks are cached afterwards.
int32_t NumCachedTokensAfter(Scheduler* scheduler, Sequence* sequence, int num_steps,
                             const std::function<StepPlan(Scheduler*)>& step) {
  for (int i = 0; i < num_steps; ++i) step(scheduler);
  scheduler->Remove(sequence);
  return scheduler->blocks().num_cached_blocks() * kBlockSize;
}

TEST_F(SchedulerTest, OffersWhatFullAttentionHasDecoded) {
  Scheduler scheduler({.max_batch_tokens = 64, .max_running_requests = 4, .num_blocks = 64});
  Sequence* sequence = AddSequence(&scheduler, CountingTokens(40));
  // 40 prompt tokens and 60 decoded ones are computed.
  EXPECT_EQ(NumCachedTokensAfter(&scheduler, sequence, 61, Step), 96);
}

TEST_F(SchedulerTest, NeverOffersABlockWithATokenThatSparseAttentionHasDecoded) {
  Scheduler scheduler({.max_batch_tokens = 64, .max_running_requests = 4, .num_blocks = 64});
  Request request;
  request.prompt_token_ids = CountingTokens(40);
  request.attention = {.mode = AttentionMode::kTidal, .selection = {.token_budget = 50}};
  Sequence* sequence = AddSequence(&scheduler, std::move(request));
  // Up to 50 tokens of context the budget covers all: full attention. Later blocks are polluted,
  // and so is what would be decoded by full attention after them.
  EXPECT_EQ(NumCachedTokensAfter(&scheduler, sequence, 61, Step), 48);
}

TEST_F(SchedulerTest, ThePreemptedFindTheirOwnBlocksAgain) {
  Scheduler scheduler({.max_batch_tokens = 64, .max_running_requests = 4, .num_blocks = 6});
  Sequence* oldest = AddSequence(&scheduler, 16);
  Sequence* newest = AddSequence(&scheduler, 40);
  while (newest->num_preemptions == 0) Step(&scheduler);
  const int32_t num_tokens = newest->num_tokens();
  scheduler.Remove(oldest);
  const StepPlan plan = Step(&scheduler);
  ASSERT_THAT(plan.admitted, ElementsAre(newest));
  EXPECT_LT(plan.chunks[0].num_tokens, 16 + 16);
  EXPECT_EQ(newest->num_computed_tokens, num_tokens - 1);
  EXPECT_EQ(newest->num_cached_prompt_tokens, 0) << "a request's usage tells of its first prefill";
}

TEST_F(SchedulerTest, CountsWhatIsComputedBeforeAFirstTokenAtLeast) {
  Scheduler scheduler({.max_batch_tokens = 64, .max_running_requests = 8, .num_blocks = 640});
  const auto count = [this, &scheduler](std::vector<int32_t> prompt, int32_t priority = 0) {
    Sequence* sequence = MakeSequence(std::move(prompt), priority);
    return scheduler.MinTokensToFirstToken(sequence);
  };
  EXPECT_EQ(count(CountingTokens(500)), 500);
  AddSequence(&scheduler, 400);
  AddSequence(&scheduler, 600);
  EXPECT_EQ(count(CountingTokens(500)), 500 + 400) << "the shorter one is served before";
  EXPECT_EQ(count(CountingTokens(500), /*priority=*/1), 500) << "by priority nothing is";
  Step(&scheduler);
  EXPECT_EQ(count(CountingTokens(500)), 500 + 400 - 64);
  AddSequence(&scheduler, CountingTokens(1000));
  EXPECT_EQ(count(CountingTokens(500)), 500 - 496) << "may find most of it computed by then";
}

// However short of blocks: once nobody comes any more, everybody ends in no more steps than they
// would need one after another, each with a quarter of the steps' tokens.
TEST_F(SchedulerTest, PreemptionNeverLivelocks) {
  constexpr SchedulerOptions kOptions{
      .max_batch_tokens = 16, .max_running_requests = 6, .num_blocks = 12};
  constexpr int32_t kMaxTokens = kOptions.num_blocks * kBlockSize;
  std::mt19937 random(5);
  int num_preemptions = 0;
  const int64_t num_walks = NumRandomWalkSteps(50'000) / 250;
  for (int64_t walk = 0; walk < num_walks; ++walk) {
    Scheduler scheduler(kOptions);
    std::map<Sequence*, int32_t> num_wanted;
    int64_t num_steps_alone = 0;
    for (int i = 0; i < 12; ++i) {
      const auto num_prompt_tokens = static_cast<int32_t>(1 + random() % (kMaxTokens - 1));
      const auto num_new_tokens = static_cast<int32_t>(
          1 + random() % static_cast<uint32_t>(kMaxTokens - num_prompt_tokens));
      Sequence* sequence =
          AddSequence(&scheduler, num_prompt_tokens, static_cast<int32_t>(random() % 2));
      num_wanted[sequence] = num_new_tokens;
      num_steps_alone += 4 * num_prompt_tokens + num_new_tokens;
      if (random() % 2 == 0) num_preemptions += static_cast<int>(Step(&scheduler).preempted.size());
    }
    int64_t num_steps = 0;
    for (; !num_wanted.empty(); ++num_steps) {
      ASSERT_LE(num_steps, num_steps_alone) << "walk " << walk;
      num_preemptions += static_cast<int>(Step(&scheduler).preempted.size());
      std::erase_if(num_wanted, [&](const auto& wanted) {
        const bool is_done = wanted.first->num_generated_tokens() >= wanted.second;
        if (is_done) scheduler.Remove(wanted.first);
        return is_done;
      });
    }
    sequences_.clear();
  }
  EXPECT_GT(num_preemptions, num_walks);
}

// Random arrivals, ends and aborts: the books balance, the step's limits hold, and everybody gets
// on. Prompts are beginnings of few documents, so that many are cached.
TEST_F(SchedulerTest, KeepsItsInvariantsThroughARandomWalk) {
  constexpr SchedulerOptions kOptions{
      .max_batch_tokens = 24, .max_running_requests = 6, .num_blocks = 20};
  Scheduler scheduler(kOptions);
  std::mt19937 random(11);
  std::map<RequestTicket, Sequence*> live;
  std::map<RequestTicket, int32_t> num_wanted;
  int num_preemptions = 0;
  int num_ended = 0;
  int64_t num_cached_tokens = 0;
  const int64_t num_steps = NumRandomWalkSteps(50'000);
  for (int64_t step = 0; step < num_steps; ++step) {
    if (live.size() < 12 && random() % 2 == 0) {
      const auto num_prompt_tokens = static_cast<int32_t>(1 + random() % 100);
      std::vector<int32_t> prompt = CountingTokens(num_prompt_tokens);
      prompt[0] = static_cast<int32_t>(random() % 4);
      Sequence* sequence =
          AddSequence(&scheduler, std::move(prompt), static_cast<int32_t>(random() % 3));
      live[sequence->ticket] = sequence;
      num_wanted[sequence->ticket] =
          static_cast<int32_t>(1 + random() % static_cast<uint32_t>(320 - num_prompt_tokens));
    }
    const StepPlan plan = Step(&scheduler);
    num_preemptions += static_cast<int>(plan.preempted.size());
    int32_t num_tokens = 0;
    for (const ScheduledChunk& chunk : plan.chunks) num_tokens += chunk.num_tokens;
    ASSERT_LE(num_tokens, kOptions.max_batch_tokens);
    ASSERT_LE(scheduler.num_running(), kOptions.max_running_requests);
    ASSERT_EQ(plan.chunks.empty(), live.empty());
    for (const ScheduledChunk& chunk : plan.chunks) ASSERT_GT(chunk.num_tokens, 0);
    std::map<int32_t, int32_t> num_holders;
    for (const auto& [ticket, sequence] : live) {
      for (const int32_t block : sequence->block_table) ++num_holders[block];
      ASSERT_LE(NumBlocksFor(sequence->num_computed_tokens),
                static_cast<int32_t>(sequence->block_table.size()));
    }
    ASSERT_EQ(scheduler.blocks().num_used_blocks(), static_cast<int32_t>(num_holders.size()));
    for (const auto& [block, count] : num_holders) {
      ASSERT_EQ(scheduler.blocks().num_references(block), count);
    }
    for (const Sequence* sequence : plan.admitted) {
      num_cached_tokens += sequence->num_cached_prompt_tokens;
    }
    for (auto it = live.begin(); it != live.end();) {
      const bool is_done = it->second->num_generated_tokens() >= num_wanted[it->first];
      if (is_done || random() % 200 == 0) {
        scheduler.Remove(it->second);
        num_ended += is_done ? 1 : 0;
        Forget(it->second);
        it = live.erase(it);
      } else {
        ++it;
      }
    }
  }
  for (const auto& [ticket, sequence] : live) scheduler.Remove(sequence);
  EXPECT_EQ(scheduler.blocks().num_used_blocks(), 0);
  EXPECT_EQ(scheduler.num_waiting_prompt_tokens(), 0);
  EXPECT_GT(num_preemptions, 100);
  EXPECT_GT(num_ended, 100);
  EXPECT_GT(num_cached_tokens, 1000);
}

}  // namespace
}  // namespace tidal
