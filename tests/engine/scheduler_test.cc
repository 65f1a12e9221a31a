#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <vector>

#include "tests/engine/recording_observer.h"

namespace tidal {
namespace {

using ::testing::ElementsAre;

// Makes sequences and plays the part of the engine: whatever samples gets a token.
class SchedulerTest : public ::testing::Test {
 protected:
  Sequence* AddSequence(Scheduler* scheduler, int32_t num_prompt_tokens, int32_t priority = 0) {
    Request request;
    request.prompt_token_ids.assign(static_cast<size_t>(num_prompt_tokens), 1);
    request.priority = priority;
    request.stopping.max_new_tokens = 1 << 20;
    sequences_.push_back(std::make_unique<Sequence>(++last_ticket_, std::move(request),
                                                    std::make_shared<RecordingGenerationObserver>(),
                                                    OutputText(nullptr, {})));
    scheduler->Enqueue(sequences_.back().get());
    return sequences_.back().get();
  }

  static StepPlan Step(Scheduler* scheduler) {
    StepPlan plan = scheduler->PlanStep();
    std::vector<Sequence*> sampling;
    for (const ScheduledChunk& chunk : plan.chunks) {
      if (chunk.samples()) sampling.push_back(chunk.sequence);
    }
    Scheduler::MarkLaunched(plan);
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
  Scheduler scheduler({.max_batch_tokens = 64, .max_running_requests = 4, .num_blocks = 5});
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

// Random arrivals, ends and aborts: the books balance, the step's limits hold, and everybody gets
// on.
TEST_F(SchedulerTest, KeepsItsInvariantsThroughARandomWalk) {
  constexpr SchedulerOptions kOptions{
      .max_batch_tokens = 24, .max_running_requests = 6, .num_blocks = 20};
  Scheduler scheduler(kOptions);
  std::mt19937 random(11);
  std::map<RequestTicket, Sequence*> live;
  std::map<RequestTicket, int32_t> num_wanted;
  int num_preemptions = 0;
  int num_ended = 0;
  for (int step = 0; step < 50'000; ++step) {
    if (live.size() < 12 && random() % 2 == 0) {
      const auto num_prompt_tokens = static_cast<int32_t>(1 + random() % 100);
      Sequence* sequence =
          AddSequence(&scheduler, num_prompt_tokens, static_cast<int32_t>(random() % 3));
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
    int32_t num_held_blocks = 0;
    for (const auto& [ticket, sequence] : live) {
      num_held_blocks += static_cast<int32_t>(sequence->block_table.size());
      ASSERT_LE(NumBlocksFor(sequence->num_computed_tokens),
                static_cast<int32_t>(sequence->block_table.size()));
    }
    ASSERT_EQ(scheduler.blocks().num_used_blocks(), num_held_blocks);
    for (auto it = live.begin(); it != live.end();) {
      const bool is_done = it->second->num_generated_tokens() >= num_wanted[it->first];
      if (is_done || random() % 200 == 0) {
        scheduler.Remove(it->second);
        num_ended += is_done ? 1 : 0;
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
}

}  // namespace
}  // namespace tidal
