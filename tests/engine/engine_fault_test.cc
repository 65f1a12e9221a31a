// Faults where they can happen: a cache that is too small, a backend that fails at some step, a
// step that stalls, a clock that jumps, a reader that dawdles. Whatever comes: each request ends
// once, yields what it would alone or says why not, and nothing is left behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <latch>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "tests/engine/fake_clock.h"
#include "tests/engine/fake_model_runner.h"
#include "tests/engine/random_walk.h"
#include "tests/engine/recording_observer.h"

namespace tidal {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kVocabSize = 256;
constexpr int32_t kNumBlocks = 24;

int32_t NextToken(const std::vector<int32_t>& history) {
  return 1 + FakeModelRunner::HashOfHistory(history, kVocabSize - 1);
}

std::vector<int32_t> ExpectedTokens(std::vector<int32_t> history, int32_t count) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < count; ++i) {
    tokens.push_back(NextToken(history));
    history.push_back(tokens.back());
  }
  return tokens;
}

// A request and what was heard of it.
struct Asked {
  Request request;
  RequestTicket ticket = 0;
  std::shared_ptr<RecordingGenerationObserver> observer;
};

// The parameter is the number of steps that may be in flight.
class EngineFaultTest : public ::testing::TestWithParam<int32_t> {
 protected:
  void SetUp() override { Reset(); }

  void Reset() {
    engine_.reset();
    observer_ = std::make_unique<RecordingEngineObserver>();
    runner_ = std::make_unique<FakeModelRunner>(kNumBlocks, NextToken, GetParam());
    engine_ = std::make_unique<Engine>(
        EngineOptions{.max_model_len = 200,
                      .max_batch_tokens = 24,
                      .max_running_requests = 6,
                      .max_queued_requests = 64,
                      .max_queued_tokens = 1 << 20,
                      .num_blocks = kNumBlocks,
                      .eos_token_ids = {}},
        *LayerPlan::Create(8, {.full_layers = {{0, 1}}, .selection_layers = {{2, 4}}}),
        runner_.get(), /*tokenizer=*/nullptr, &clock_, observer_.get());
  }

  Asked Ask(int32_t num_prompt_tokens, int32_t max_new_tokens,
            absl::Duration time_left = absl::InfiniteDuration()) {
    Asked asked;
    asked.request.id = absl::StrCat("request-", ++num_requests_);
    asked.request.prompt_token_ids.assign(static_cast<size_t>(num_prompt_tokens),
                                          1 + num_requests_ % 5);
    asked.request.stopping.max_new_tokens = max_new_tokens;
    asked.request.arrival_time = clock_.Now();
    asked.request.deadline = clock_.Now() + time_left;
    asked.observer = std::make_shared<RecordingGenerationObserver>();
    const absl::StatusOr<RequestTicket> ticket = engine_->Submit(asked.request, asked.observer);
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    asked.ticket = ticket.value_or(0);
    return asked;
  }

  void ExpectNothingIsLeft() const {
    const EngineLoad load = observer_->load();
    EXPECT_EQ(load.num_used_blocks, 0);
    EXPECT_EQ(load.num_running_requests, 0);
    EXPECT_EQ(load.num_waiting_requests, 0);
    EXPECT_EQ(load.num_waiting_prompt_tokens, 0);
  }

  static void ExpectYieldsWhatItWouldAlone(const Asked& asked) {
    EXPECT_TRUE(asked.observer->finished().has_value()) << asked.observer->failure();
    EXPECT_EQ(asked.observer->token_ids(), ExpectedTokens(asked.request.prompt_token_ids,
                                                          asked.request.stopping.max_new_tokens));
  }

  // What the engine holds, read between two steps: its own books must agree with each other.
  void ExpectBooksBalance() {
    std::promise<EngineDebugState> described;
    engine_->RequestDebugState([&described](const absl::StatusOr<EngineDebugState>& state) {
      described.set_value(state.value_or(EngineDebugState()));
    });
    const EngineDebugState state = described.get_future().get();
    int32_t num_running = 0;
    int32_t num_held_blocks = 0;
    for (const SequenceDebugState& sequence : state.sequences) {
      const bool waits = sequence.stage == RequestStage::kQueued;
      num_running += waits ? 0 : 1;
      num_held_blocks += sequence.num_blocks;
      EXPECT_EQ(waits, sequence.sampler_slot < 0) << sequence.request_id;
      EXPECT_EQ(waits, sequence.num_blocks == 0) << sequence.request_id;
      EXPECT_LE(sequence.num_computed_tokens, sequence.num_blocks * kBlockSize);
      EXPECT_LT(
          sequence.num_computed_tokens,
          sequence.num_prompt_tokens + sequence.num_generated_tokens + sequence.num_unread_tokens);
      EXPECT_LE(sequence.num_generated_tokens, sequence.max_new_tokens);
    }
    EXPECT_LE(num_running, 6);
    EXPECT_LE(state.num_steps_in_flight, GetParam());
    EXPECT_LE(state.load.num_used_blocks, num_held_blocks) << "each used block has a holder";
    EXPECT_LE(state.load.num_used_blocks + state.load.num_cached_blocks, kNumBlocks);
  }

  FakeClock clock_;
  std::unique_ptr<RecordingEngineObserver> observer_;
  std::unique_ptr<FakeModelRunner> runner_;
  std::unique_ptr<Engine> engine_;  // last: stops before what it points to goes
  int32_t num_requests_ = 0;
};

// Wherever the backend fails, every request ends once: finished before, or failed by the fault.
TEST_P(EngineFaultTest, ABackendThatFailsAtAnyStepFailsWhatIsLeft) {
  for (const bool fails_in_collect : {false, true}) {
    for (int failing_step = 0; failing_step < 40; ++failing_step) {
      SCOPED_TRACE(absl::StrCat(fails_in_collect ? "collect " : "launch ", failing_step));
      Reset();
      int num_steps = 0;
      const auto fail_in_time = [&num_steps, failing_step] {
        return num_steps++ == failing_step ? absl::InternalError("device lost") : absl::OkStatus();
      };
      if (fails_in_collect) {
        runner_->set_on_collect(fail_in_time);
      } else {
        runner_->set_on_launch([&](const StepBatch&) { return fail_in_time(); });
      }
      // More than the cache holds, so that some steps preempt.
      std::vector<Asked> all;
      for (int i = 0; i < 8; ++i) all.push_back(Ask(10 + 9 * i, 10 + 12 * i));
      engine_->Start();
      int num_failed = 0;
      for (const Asked& asked : all) {
        asked.observer->WaitForEnd();
        if (asked.observer->finished().has_value()) {
          ExpectYieldsWhatItWouldAlone(asked);
          continue;
        }
        ++num_failed;
        EXPECT_EQ(asked.observer->failure().code(), absl::StatusCode::kInternal);
        EXPECT_THAT(std::string(asked.observer->failure().message()), HasSubstr("device lost"));
      }
      EXPECT_GT(num_failed, 0);
      engine_->Stop(absl::OkStatus());
      for (const Asked& asked : all) EXPECT_EQ(asked.observer->num_endings(), 1);
      EXPECT_EQ(engine_->health().code(), absl::StatusCode::kInternal);
      ExpectNothingIsLeft();
    }
  }
}

// A step that hangs keeps nobody from asking, cancelling or looking; progress stands still, which
// liveness is made of.
TEST_P(EngineFaultTest, AStalledStepHoldsUpNobodyWhoCalls) {
  std::latch entered(1);
  std::latch release(1);
  runner_->set_on_launch([&](const StepBatch&) {
    if (!entered.try_wait()) {
      entered.count_down();
      release.wait();
    }
    return absl::OkStatus();
  });
  engine_->Start();
  const Asked stalled = Ask(10, 5);
  entered.wait();
  const absl::Time progress = engine_->last_progress();
  clock_.Advance(absl::Seconds(100));
  const Asked cancelled = Ask(10, 5);
  engine_->Cancel(cancelled.ticket, absl::CancelledError("gone"));
  const Asked late = Ask(10, 5, absl::Seconds(1));
  const Asked patient = Ask(10, 5);
  EXPECT_EQ(engine_->load().num_waiting_requests, 3);
  EXPECT_EQ(engine_->last_progress(), progress);
  clock_.Advance(absl::Seconds(2));
  release.count_down();
  for (const Asked* asked : {&stalled, &cancelled, &late, &patient}) asked->observer->WaitForEnd();
  ExpectYieldsWhatItWouldAlone(stalled);
  ExpectYieldsWhatItWouldAlone(patient);
  EXPECT_EQ(cancelled.observer->failure(), absl::CancelledError("gone"));
  EXPECT_EQ(late.observer->failure().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GT(engine_->last_progress(), progress);
  ExpectNothingIsLeft();
}

// Hours that pass at once end those whose deadline they pass, and nobody else.
TEST_P(EngineFaultTest, AJumpOfTheClockEndsOnlyWhoseDeadlineItPasses) {
  int num_steps = 0;
  runner_->set_on_launch([this, &num_steps](const StepBatch&) {
    if (++num_steps == 5) clock_.Advance(absl::Hours(3));
    return absl::OkStatus();
  });
  const Asked hurried = Ask(10, 60, absl::Hours(2));
  const Asked relaxed = Ask(10, 60, absl::Hours(4));
  const Asked timeless = Ask(10, 60);
  engine_->Start();
  for (const Asked* asked : {&hurried, &relaxed, &timeless}) asked->observer->WaitForEnd();
  EXPECT_EQ(hurried.observer->failure().code(), absl::StatusCode::kDeadlineExceeded);
  ExpectYieldsWhatItWouldAlone(relaxed);
  ExpectYieldsWhatItWouldAlone(timeless);
  ExpectNothingIsLeft();
}

// All at once and at random, for as many requests as a walk is long.
TEST_P(EngineFaultTest, KeepsItsBooksThroughARandomWalkOfFaults) {
  std::mt19937 random(17);
  std::mt19937 step_random(18);
  runner_->set_on_launch([this, &step_random](const StepBatch&) {
    if (step_random() % 50 == 0) clock_.Advance(absl::Milliseconds(step_random() % 2000));
    return absl::OkStatus();
  });
  engine_->Start();
  int num_finished = 0;
  int num_cancelled = 0;
  int num_late = 0;
  std::vector<Asked> live;
  const auto end = [&](const Asked& asked) {
    asked.observer->WaitForEnd();
    EXPECT_EQ(asked.observer->num_endings(), 1);
    if (asked.observer->finished().has_value()) {
      ++num_finished;
      return ExpectYieldsWhatItWouldAlone(asked);
    }
    const absl::Status failure = asked.observer->failure();
    num_cancelled += absl::IsCancelled(failure) ? 1 : 0;
    num_late += absl::IsDeadlineExceeded(failure) ? 1 : 0;
    EXPECT_TRUE(absl::IsCancelled(failure) || absl::IsDeadlineExceeded(failure)) << failure;
  };
  const int64_t num_walk_steps = NumRandomWalkSteps(50'000) / 50;
  for (int64_t i = 0; i < num_walk_steps && !HasFailure(); ++i) {
    const bool hurries = random() % 4 == 0;
    live.push_back(Ask(static_cast<int32_t>(1 + random() % 100),
                       static_cast<int32_t>(1 + random() % 90),
                       hurries ? absl::Milliseconds(random() % 3000) : absl::InfiniteDuration()));
    if (random() % 3 == 0) live[random() % live.size()].observer->WaitForTokens(random() % 20);
    if (random() % 4 == 0) {
      engine_->Cancel(live[random() % live.size()].ticket, absl::CancelledError("gone"));
    }
    if (random() % 8 == 0) ExpectBooksBalance();
    if (random() % 100 == 0) {
      EXPECT_TRUE(engine_->FlushPrefixCache().ok());
    }
    while (live.size() >= 12) {
      end(live.front());
      live.erase(live.begin());
    }
  }
  for (const Asked& asked : live) end(asked);
  EXPECT_TRUE(engine_->WaitUntilIdle(absl::InfiniteDuration()));
  ExpectNothingIsLeft();
  EXPECT_GT(num_finished, num_walk_steps / 4);
  EXPECT_GT(num_cancelled, num_walk_steps / 100);
  EXPECT_GT(num_late, num_walk_steps / 100);
  EXPECT_FALSE(observer_->preempted_ids().empty());
}

INSTANTIATE_TEST_SUITE_P(StepsInFlight, EngineFaultTest, ::testing::Values(1, 2),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace tidal
