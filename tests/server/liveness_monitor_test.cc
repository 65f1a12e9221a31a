// Liveness as a probe sees it: over gRPC, through Watch, of an engine that stands still.
#include "server/liveness_monitor.h"

#include <grpcpp/client_context.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "tests/server/test_server.h"

namespace tidal::server {
namespace {

// Hears of every change, and lets a test wait for one.
class WatchedHealthService : public grpc::HealthCheckServiceInterface {
 public:
  void SetServingStatus(const std::string& service_name, bool serving) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    statuses_[service_name] = serving;
    changed_.notify_all();
  }
  void SetServingStatus(bool /*serving*/) override { ADD_FAILURE() << "services are named"; }

  bool WaitFor(const std::string& service_name, bool serving) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60),
                             [&] { return statuses_[service_name] == serving; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, bool> statuses_;
};

std::string StateOf(const PrometheusMetrics& metrics) {
  const std::string text = prometheus::TextSerializer().Serialize(metrics.Collect());
  for (const std::string state : {"loading", "ready", "draining", "dead"}) {
    if (text.find("tidal_server_state{state=\"" + state + "\"} 1\n") != std::string::npos) {
      return state;
    }
  }
  return "none";
}

class LivenessMonitorTest : public testing::Test {
 protected:
  LivenessMonitorTest() { server_.metrics().SetPhase(Phase::kServing); }

  std::unique_ptr<grpc::ClientReader<inference::v1::GenerateStreamResponse>> StartStream() {
    inference::v1::GenerateStreamRequest request;
    request.set_text("hello");
    request.mutable_stopping()->set_max_new_tokens(3);
    return stub_->GenerateStream(&context_, request);
  }

  TestServer server_;
  WatchedHealthService service_;
  Health health_{{&service_}};
  std::unique_ptr<inference::v1::InferenceService::Stub> stub_ = server_.NewStub();
  grpc::ClientContext context_;
};

TEST_F(LivenessMonitorTest, AnEngineThatStandsStillIsDeadUntilItGoesOn) {
  const LivenessMonitor monitor(&server_.engine(), absl::Milliseconds(50), &server_.metrics(),
                                &health_);
  EXPECT_TRUE(service_.WaitFor("liveness", true));
  EXPECT_EQ(StateOf(server_.metrics()), "ready");
  server_.gate().Close();
  const auto reader = StartStream();
  EXPECT_TRUE(service_.WaitFor("liveness", false));
  EXPECT_EQ(StateOf(server_.metrics()), "dead");
  server_.gate().Open();
  EXPECT_TRUE(service_.WaitFor("liveness", true));
  EXPECT_EQ(StateOf(server_.metrics()), "ready");
  inference::v1::GenerateStreamResponse event;
  while (reader->Read(&event)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(LivenessMonitorTest, AnEngineThatHasFailedIsDead) {
  const LivenessMonitor monitor(&server_.engine(), absl::Milliseconds(50), &server_.metrics(),
                                &health_);
  server_.FailNextStep(absl::DataLossError("device lost"));
  const auto reader = StartStream();
  EXPECT_TRUE(service_.WaitFor("liveness", false));
  EXPECT_EQ(StateOf(server_.metrics()), "dead");
  inference::v1::GenerateStreamResponse event;
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::INTERNAL);
}

TEST(ServerStateTest, FollowsThePhase) {
  PrometheusMetrics metrics({.methods = {}});
  EXPECT_EQ(StateOf(metrics), "loading");
  metrics.SetPhase(Phase::kServing);
  EXPECT_EQ(StateOf(metrics), "ready");
  metrics.SetPhase(Phase::kDraining);
  EXPECT_EQ(StateOf(metrics), "draining");
  metrics.OnFault(absl::InternalError("device lost"));
  EXPECT_EQ(StateOf(metrics), "dead");
}

TEST(ExitTimerTest, LetsGoOfWhatEndsInTime) { const ExitTimer timer(absl::Hours(1), "the test"); }

TEST(ExitTimerDeathTest, EndsTheProcessWhereSomethingHangs) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(
      {
        const ExitTimer timer(absl::Milliseconds(1), "the test");
        std::promise<void> never;
        never.get_future().wait();
      },
      testing::ExitedWithCode(EXIT_FAILURE), "");
}

}  // namespace
}  // namespace tidal::server
