#include "server/health.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

namespace tidal::server {
namespace {

class RecordingHealthService : public grpc::HealthCheckServiceInterface {
 public:
  void SetServingStatus(const std::string& service_name, bool serving) override {
    statuses[service_name] = serving;
  }
  void SetServingStatus(bool serving) override {
    for (auto& [name, status] : statuses) status = serving;
  }

  std::map<std::string, bool> statuses;
};

using Statuses = std::map<std::string, bool>;

Statuses AllOf(bool ready, bool alive) {
  return {{"", ready},
          {"readiness", ready},
          {"tidal.inference.v1.InferenceService", ready},
          {"tidal.inference.v1.ModelService", ready},
          {"liveness", alive}};
}

TEST(HealthTest, IsAliveButNotReadyAtFirst) {
  RecordingHealthService service;
  const Health health({&service});
  EXPECT_EQ(service.statuses, AllOf(/*ready=*/false, /*alive=*/true));
}

TEST(HealthTest, TellsReadinessFromLiveness) {
  RecordingHealthService service;
  Health health({&service});
  health.SetReady(true);
  EXPECT_EQ(service.statuses, AllOf(/*ready=*/true, /*alive=*/true));
  health.SetAlive(false);
  EXPECT_EQ(service.statuses, AllOf(/*ready=*/true, /*alive=*/false));
  health.SetReady(false);
  health.SetAlive(true);
  EXPECT_EQ(service.statuses, AllOf(/*ready=*/false, /*alive=*/true));
}

class ProgressWatchTest : public testing::Test {
 protected:
  bool IsAliveAt(int second, const EngineLoad& load, int last_progress_second) {
    return watch_.IsAlive(absl::FromUnixSeconds(second), load,
                          absl::FromUnixSeconds(last_progress_second));
  }

  const EngineLoad idle_;
  const EngineLoad busy_{.num_running_requests = 1};
  const EngineLoad queued_{.num_waiting_requests = 1};
  ProgressWatch watch_{absl::Seconds(60)};
};

TEST_F(ProgressWatchTest, AnIdleEngineIsAliveForEver) {
  for (int second = 0; second < 10'000; second += 100) EXPECT_TRUE(IsAliveAt(second, idle_, 0));
}

TEST_F(ProgressWatchTest, ABusyEngineThatProgressesIsAlive) {
  for (int second = 0; second < 10'000; second += 100) {
    EXPECT_TRUE(IsAliveAt(second, busy_, second - 50));
  }
}

TEST_F(ProgressWatchTest, ABusyEngineThatHasStoppedIsDeadAfterTheTimeout) {
  EXPECT_TRUE(IsAliveAt(0, busy_, 0));
  EXPECT_TRUE(IsAliveAt(10, busy_, 0));  // stands still since here, as far as is known
  EXPECT_TRUE(IsAliveAt(69, busy_, 0));
  EXPECT_FALSE(IsAliveAt(70, busy_, 0));
  EXPECT_TRUE(IsAliveAt(80, busy_, 79));
}

TEST_F(ProgressWatchTest, ARequestAfterALongIdleTimeIsGivenTheWholeTimeout) {
  EXPECT_TRUE(IsAliveAt(0, idle_, 0));
  EXPECT_TRUE(IsAliveAt(1000, queued_, 0));
  EXPECT_TRUE(IsAliveAt(1059, queued_, 0));
  EXPECT_FALSE(IsAliveAt(1060, queued_, 0));
}

}  // namespace
}  // namespace tidal::server
