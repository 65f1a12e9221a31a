#include "server/lifecycle.h"

#include <gtest/gtest.h>

#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "server/drain.h"

namespace tidal::server {
namespace {

constexpr absl::Duration kForever = absl::Hours(1);

TEST(LifecycleTest, AdmitsCallsWhileServingOnly) {
  Lifecycle lifecycle;
  EXPECT_EQ(lifecycle.Admit().status(), absl::UnavailableError("the server is loading its model"));
  const ServingState state;
  lifecycle.Serve(&state);
  {
    const absl::StatusOr<ActiveCall> call = lifecycle.Admit();
    ASSERT_TRUE(call.ok());
    EXPECT_EQ(&call->state(), &state);
  }
  lifecycle.Drain();
  EXPECT_EQ(lifecycle.Admit().status(), absl::UnavailableError("the server is shutting down"));
  lifecycle.Stop();
  EXPECT_EQ(lifecycle.Admit().status(), absl::UnavailableError("the server is shutting down"));
  EXPECT_EQ(lifecycle.phase(), Phase::kStopped);
}

TEST(LifecycleTest, CountsCallsUntilTheLastOwnerHasGone) {
  Lifecycle lifecycle;
  const ServingState state;
  lifecycle.Serve(&state);
  std::optional<absl::StatusOr<ActiveCall>> first(lifecycle.Admit());
  std::optional<ActiveCall> moved(*std::move(*first));
  first.reset();
  EXPECT_EQ(lifecycle.num_active_calls(), 1);
  EXPECT_FALSE(lifecycle.WaitForCalls(absl::ZeroDuration()));
  moved.reset();
  EXPECT_EQ(lifecycle.num_active_calls(), 0);
  EXPECT_TRUE(lifecycle.WaitForCalls(absl::ZeroDuration()));
}

TEST(LifecycleTest, CallsMayEndOnAnyThread) {
  Lifecycle lifecycle;
  const ServingState state;
  lifecycle.Serve(&state);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&lifecycle] {
      for (int j = 0; j < 1000; ++j) EXPECT_TRUE(lifecycle.Admit().ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(lifecycle.WaitForCalls(kForever));
}

TEST(LifecycleTest, OneSignalAsksForTheEndAndTwoAreUrgent) {
  Lifecycle lifecycle;
  EXPECT_FALSE(lifecycle.WaitForEnd(absl::ZeroDuration()));
  lifecycle.OnSignal();
  EXPECT_TRUE(lifecycle.WaitForEnd(kForever));
  EXPECT_FALSE(lifecycle.WaitForUrgency(absl::ZeroDuration()));
  lifecycle.OnSignal();
  EXPECT_TRUE(lifecycle.WaitForUrgency(kForever));
}

TEST(LifecycleTest, AFaultIsUrgent) {
  Lifecycle lifecycle;
  lifecycle.OnEngineFault(absl::InternalError("device lost"));
  EXPECT_TRUE(lifecycle.WaitForEnd(kForever));
  EXPECT_TRUE(lifecycle.WaitForUrgency(kForever));
  EXPECT_EQ(lifecycle.fault(), absl::InternalError("device lost"));
}

// Draining with one call admitted, which ends when the engine is stopped.
class DrainOrderTest : public testing::Test {
 protected:
  DrainOrderTest() {
    lifecycle_.Serve(&state_);
    call_.emplace(lifecycle_.Admit());
    lifecycle_.OnSignal();
  }

  DrainResult DrainWith(const DrainOptions& options) {
    return Drain({.lifecycle = &lifecycle_,
                  .set_ready = [this](bool ready) { ready_.push_back(ready); },
                  .stop_engine =
                      [this](absl::Status reason) {
                        stop_reason_ = std::move(reason);
                        phase_at_stop_ = lifecycle_.phase();
                        had_call_at_stop_ = lifecycle_.num_active_calls() > 0;
                        call_.reset();
                      }},
                 options);
  }

  const ServingState state_;
  Lifecycle lifecycle_;
  std::optional<absl::StatusOr<ActiveCall>> call_;
  std::vector<bool> ready_;
  absl::Status stop_reason_;
  std::optional<Phase> phase_at_stop_;
  bool had_call_at_stop_ = false;
};

TEST_F(DrainOrderTest, WaitsForCallsToFinish) {
  std::thread finisher([this] {
    // Only once nobody is admitted any more.
    while (lifecycle_.Admit().ok()) std::this_thread::yield();
    call_.reset();
  });
  EXPECT_EQ(DrainWith({.shutdown_timeout = kForever}), DrainResult::kOrderly);
  finisher.join();
  EXPECT_EQ(ready_, std::vector<bool>{false});
  EXPECT_FALSE(had_call_at_stop_);
  EXPECT_EQ(phase_at_stop_, Phase::kDraining);
  EXPECT_EQ(lifecycle_.phase(), Phase::kStopped);
}

TEST_F(DrainOrderTest, AbortsCallsThatDoNotFinishInTime) {
  EXPECT_EQ(DrainWith({.shutdown_timeout = absl::ZeroDuration()}), DrainResult::kOrderly);
  EXPECT_TRUE(had_call_at_stop_);
  EXPECT_EQ(stop_reason_, absl::UnavailableError("the server is shutting down"));
}

TEST_F(DrainOrderTest, ASecondSignalCutsEveryWaitShort) {
  lifecycle_.OnSignal();
  EXPECT_EQ(DrainWith({.lame_duck_interval = kForever, .shutdown_timeout = kForever}),
            DrainResult::kForced);
  EXPECT_TRUE(had_call_at_stop_);
}

TEST_F(DrainOrderTest, AFaultCutsEveryWaitShort) {
  lifecycle_.OnEngineFault(absl::InternalError("device lost"));
  EXPECT_EQ(DrainWith({.lame_duck_interval = kForever, .shutdown_timeout = kForever}),
            DrainResult::kFault);
}

TEST_F(DrainOrderTest, StillAdmitsWhileALameDuck) {
  call_.reset();
  std::thread client;
  const DrainResult result = Drain({.lifecycle = &lifecycle_,
                                    .set_ready =
                                        [&](bool /*ready*/) {
                                          client = std::thread([this] {
                                            EXPECT_TRUE(lifecycle_.Admit().ok());
                                            lifecycle_.OnSignal();
                                          });
                                        },
                                    .stop_engine = [](absl::Status /*reason*/) {}},
                                   {.lame_duck_interval = kForever, .shutdown_timeout = kForever});
  client.join();
  EXPECT_EQ(result, DrainResult::kForced);
}

}  // namespace
}  // namespace tidal::server
