// Draining a server that has streams open.
#include "server/drain.h"

#include <grpcpp/client_context.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>

#include "tests/server/test_server.h"

namespace tidal::server {
namespace {

using inference::v1::GenerateStreamRequest;
using inference::v1::GenerateStreamResponse;

class DrainTest : public testing::Test {
 protected:
  DrainTest() {
    server_.gate().Close();
    GenerateStreamRequest request;
    request.set_text("hello");
    request.mutable_stopping()->set_max_new_tokens(10);
    reader_ = stub_->GenerateStream(&context_, request);
    server_.gate().WaitForArrival();
    server_.lifecycle().OnSignal();
  }

  DrainResult DrainWith(absl::Duration shutdown_timeout) {
    return Drain({.lifecycle = &server_.lifecycle(),
                  .set_ready = [](bool /*ready*/) {},
                  .stop_engine = [this](absl::Status reason) { StopInTheMiddleOfAStep(reason); }},
                 {.shutdown_timeout = shutdown_timeout, .abort_timeout = absl::Seconds(60)});
  }

  // The step in hand ends only when the engine has been told to stop.
  void StopInTheMiddleOfAStep(const absl::Status& reason) {
    std::thread stopper([this, reason] { server_.engine().Stop(reason); });
    while (!absl::IsUnavailable(server_.engine().Submit({}, nullptr).status())) {
      std::this_thread::yield();
    }
    server_.gate().Open();
    stopper.join();
  }

  // Reads the stream to its end.
  grpc::Status Finish() {
    GenerateStreamResponse event;
    while (reader_->Read(&event)) text_ += event.delta().text();
    return reader_->Finish();
  }

  grpc::StatusCode CodeOfNewRequest() {
    grpc::ClientContext context;
    inference::v1::GenerateRequest request;
    request.set_text("late");
    inference::v1::GenerateResponse response;
    return stub_->Generate(&context, request, &response).error_code();
  }

  TestServer server_;
  std::unique_ptr<inference::v1::InferenceService::Stub> stub_ = server_.NewStub();
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<GenerateStreamResponse>> reader_;
  std::string text_;
};

TEST_F(DrainTest, RunningStreamsFinishAndNewRequestsAreRefused) {
  server_.lifecycle().Drain();  // now, so that the request below cannot come too early
  std::thread client([this] {
    EXPECT_EQ(CodeOfNewRequest(), grpc::StatusCode::UNAVAILABLE);
    server_.gate().Open();
    EXPECT_TRUE(Finish().ok());
  });
  EXPECT_EQ(DrainWith(absl::Seconds(60)), DrainResult::kOrderly);
  client.join();
  EXPECT_EQ(text_, TestServer::ExpectedText("hello", 10));
  EXPECT_EQ(server_.engine().load().num_used_blocks, 0);
}

TEST_F(DrainTest, StreamsThatTakeTooLongAreAborted) {
  EXPECT_EQ(DrainWith(absl::ZeroDuration()), DrainResult::kOrderly);
  const grpc::Status status = Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "the server is shutting down");
  EXPECT_FALSE(status.error_details().empty());
  EXPECT_EQ(server_.engine().load().num_used_blocks, 0);
}

TEST_F(DrainTest, ASecondSignalAbortsAtOnce) {
  std::thread impatient([this] { server_.lifecycle().OnSignal(); });
  EXPECT_EQ(DrainWith(absl::Hours(1)), DrainResult::kForced);
  impatient.join();
  EXPECT_EQ(Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(DrainTest, AFaultEndsItAndIsTold) {
  server_.FailNextStep(absl::DataLossError("device lost"));
  server_.gate().Open();
  EXPECT_EQ(Finish().error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_TRUE(server_.lifecycle().WaitForUrgency(absl::Seconds(60)));
  EXPECT_EQ(Drain({.lifecycle = &server_.lifecycle(),
                   .set_ready = [](bool /*ready*/) {},
                   .stop_engine = [this](absl::Status reason) { server_.engine().Stop(reason); }},
                  {.lame_duck_interval = absl::Hours(1), .shutdown_timeout = absl::Hours(1)}),
            DrainResult::kFault);
}

}  // namespace
}  // namespace tidal::server
