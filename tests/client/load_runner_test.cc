// The load generator's own threads, without gRPC's: calls are played by threads of the test.
#include "client/bench/load_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;

// Each call sends one delta and ends, on a thread of its own.
class ThreadedCalls {
 public:
  ~ThreadedCalls() {
    for (std::thread& thread : threads_) thread.join();
  }

  std::shared_ptr<StreamCall> Start(StreamCall::EventCallback on_event,
                                    StreamCall::DoneCallback on_done) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      most_running_ = std::max(most_running_, ++num_running_);
    }
    threads_.emplace_back([this, on_event = std::move(on_event), on_done = std::move(on_done)] {
      v1::GenerateStreamResponse event;
      event.mutable_delta()->add_token_ids(1);
      on_event(event);
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        --num_running_;
      }
      on_done(absl::OkStatus());
    });
    return std::make_shared<StreamCall>(v1::GenerateStreamRequest(), nullptr, nullptr);
  }

  int most_running() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return most_running_;
  }

 private:
  std::vector<std::thread> threads_;  // the runner's thread alone adds to them
  std::mutex mutex_;
  int num_running_ = 0;
  int most_running_ = 0;
};

LoadRunner::StartCall StartOf(ThreadedCalls& calls) {
  return [&calls](std::size_t, const PlannedRequest&, StreamCall::EventCallback on_event,
                  StreamCall::DoneCallback on_done) {
    return calls.Start(std::move(on_event), std::move(on_done));
  };
}

TEST(LoadRunnerTest, ClosedLoopKeepsItsConcurrency) {
  ThreadedCalls calls;
  LoadRunner runner(
      StartOf(calls), [](const LoadProgress&) {}, absl::Milliseconds(1));
  LoadPoint point;
  point.requests.resize(200);
  point.num_warm_up = 20;
  point.concurrency = 4;
  const std::vector<RequestRecord> records = runner.Run(point);
  ASSERT_EQ(records.size(), 200U);
  EXPECT_LE(calls.most_running(), 4);
  for (std::size_t i = 0; i < records.size(); ++i) {
    EXPECT_EQ(records[i].code, absl::StatusCode::kOk);
    EXPECT_EQ(records[i].tokens.size(), 1U);
    EXPECT_EQ(records[i].is_warm_up, i < 20);
    EXPECT_EQ(records[i].scheduled, records[i].sent);
    EXPECT_LE(records[i].sent, records[i].ended);
  }
}

TEST(LoadRunnerTest, OpenLoopNeverSendsEarly) {
  ThreadedCalls calls;
  LoadRunner runner(
      StartOf(calls), [](const LoadProgress&) {}, absl::Milliseconds(1));
  LoadPoint point;
  for (int i = 0; i < 50; ++i) point.requests.push_back({absl::Milliseconds(i), 1, 1});
  const std::vector<RequestRecord> records = runner.Run(point);
  ASSERT_EQ(records.size(), 50U);
  for (std::size_t i = 0; i < records.size(); ++i) {
    EXPECT_EQ(records[i].scheduled, point.requests[i].arrival);
    EXPECT_GE(records[i].sent, records[i].scheduled);
  }
}

TEST(LoadRunnerTest, InterruptFromAnotherThreadEndsTheRun) {
  ThreadedCalls calls;
  LoadRunner runner(
      StartOf(calls), [](const LoadProgress&) {}, absl::Milliseconds(1));
  LoadPoint point;
  point.requests = {{absl::ZeroDuration(), 1, 1}, {absl::Hours(1), 1, 1}};
  std::thread interrupter([&runner] { runner.Interrupt(); });
  const std::vector<RequestRecord> records = runner.Run(point);
  interrupter.join();
  EXPECT_LE(records.size(), 1U);
}

}  // namespace
}  // namespace tidal::client
