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
                  .stop_engine =
                      [this](absl::Status reason) {
                        // The step in hand ends; the engine does not begin another.
                        server_.gate().Open();
                        server_.engine().Stop(std::move(reason));
                      }},
                 {.shutdown_timeout = shutdown_timeout, .abort_timeout = absl::Seconds(60)});
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
  std::thread client([this] {
    while (CodeOfNewRequest() != grpc::StatusCode::UNAVAILABLE) {
    }
    server_.gate().Open();
    EXPECT_TRUE(Finish().ok());
  });
  // Before draining begins the gate lets requests through to a queue only, so they must be refused.
  server_.lifecycle().Drain();
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
  std::thread client([this] {
    server_.gate().Open();
    EXPECT_EQ(Finish().error_code(), grpc::StatusCode::INTERNAL);
  });
  EXPECT_EQ(DrainWith(absl::Hours(1)), DrainResult::kFault);
  client.join();
}

}  // namespace
}  // namespace tidal::server
