#include "client/inference_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"
#include "client/rpc_status.h"
#include "tests/client/fake_server.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// Far longer than anything here takes: reached only by a failure.
constexpr absl::Duration kPatience = absl::Seconds(60);

class InferenceClientTest : public ::testing::Test {
 protected:
  FakeServer server_;
  InferenceClient client_{server_.MakeChannel()};
};

TEST_F(InferenceClientTest, StreamYieldsEventsInOrder) {
  server_.inference().events = {StartedEvent(), DeltaEvent("a", 1), DeltaEvent("b", 2),
                                FinishedEvent()};
  v1::GenerateStreamRequest request;
  request.set_text("prompt");
  std::vector<v1::GenerateStreamResponse::EventCase> cases;
  const absl::Status status =
      client_.GenerateStream(request, [&cases](const v1::GenerateStreamResponse& event) {
        cases.push_back(event.event_case());
        return true;
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(cases, ::testing::ElementsAre(v1::GenerateStreamResponse::kStarted,
                                            v1::GenerateStreamResponse::kDelta,
                                            v1::GenerateStreamResponse::kDelta,
                                            v1::GenerateStreamResponse::kFinished));
  EXPECT_EQ(server_.inference().stream_request.text(), "prompt");
}

TEST_F(InferenceClientTest, StreamWithoutFinishedEventIsInternal) {
  server_.inference().events = {StartedEvent(), DeltaEvent("a", 1)};
  const absl::Status status = client_.GenerateStream(
      v1::GenerateStreamRequest(), [](const v1::GenerateStreamResponse&) { return true; });
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("finished"));
}

TEST_F(InferenceClientTest, ReceiverThatStopsCancelsTheCall) {
  server_.inference().events = {DeltaEvent("a", 1)};
  server_.inference().hold_stream_open = true;
  int num_events = 0;
  const absl::Status status = client_.GenerateStream(
      v1::GenerateStreamRequest(), [&num_events](const v1::GenerateStreamResponse&) {
        ++num_events;
        return false;
      });
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(num_events, 1);
  EXPECT_TRUE(server_.inference().stream_cancelled.WaitForNotificationWithTimeout(kPatience));
}

TEST_F(InferenceClientTest, CancellerEndsRunningStreamFromAnotherThread) {
  server_.inference().events = {DeltaEvent("a", 1)};
  server_.inference().hold_stream_open = true;
  CallCanceller canceller;
  absl::Notification event_seen;
  std::thread user([&] {
    event_seen.WaitForNotification();
    EXPECT_TRUE(canceller.Cancel());
  });
  const absl::Status status =
      client_.GenerateStream(v1::GenerateStreamRequest(),
                             [&event_seen](const v1::GenerateStreamResponse&) {
                               event_seen.Notify();
                               return true;
                             },
                             {absl::Now() + kPatience, &canceller});
  user.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(server_.inference().stream_cancelled.WaitForNotificationWithTimeout(kPatience));
  EXPECT_FALSE(canceller.Cancel()) << "the call is over";
}

TEST_F(InferenceClientTest, CancelBeforeTheCallFailsIt) {
  CallCanceller canceller;
  EXPECT_FALSE(canceller.Cancel());
  CallOptions options;
  options.canceller = &canceller;
  EXPECT_EQ(client_.Tokenize(v1::TokenizeRequest(), options).status().code(),
            absl::StatusCode::kCancelled);
}

TEST_F(InferenceClientTest, DeadlineEndsTheCall) {
  server_.inference().hold_stream_open = true;
  const absl::Status status = client_.GenerateStream(
      v1::GenerateStreamRequest(), [](const v1::GenerateStreamResponse&) { return true; },
      {absl::Now() + absl::Milliseconds(20), nullptr});
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(InferenceClientTest, ErrorCarriesFieldViolations) {
  google::rpc::BadRequest bad_request;
  auto* violation = bad_request.add_field_violations();
  violation->set_field("sampling.top_p");
  violation->set_description("is 2; it must be at most 1");
  server_.inference().status =
      StatusWithDetails(grpc::StatusCode::INVALID_ARGUMENT, "top_p is wrong", bad_request);
  const absl::Status status = client_.Generate(v1::GenerateRequest()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "top_p is wrong");
  ASSERT_THAT(FieldViolationsOf(status), SizeIs(1));
  EXPECT_EQ(FieldViolationsOf(status)[0].field, "sampling.top_p");
  EXPECT_EQ(FieldViolationsOf(status)[0].description, "is 2; it must be at most 1");
  EXPECT_FALSE(RetryDelayOf(status).has_value());
}

TEST_F(InferenceClientTest, ErrorCarriesRetryDelay) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(1);
  retry.mutable_retry_delay()->set_nanos(500000000);
  server_.inference().status =
      StatusWithDetails(grpc::StatusCode::RESOURCE_EXHAUSTED, "queue is full", retry);
  const absl::Status status = client_.Tokenize(v1::TokenizeRequest()).status();
  EXPECT_EQ(RetryDelayOf(status), absl::Milliseconds(1500));
  EXPECT_TRUE(FieldViolationsOf(status).empty());
}

TEST_F(InferenceClientTest, MalformedDetailsAreLeftOut) {
  server_.inference().status = grpc::Status(grpc::StatusCode::INTERNAL, "broken", "\xFF\xFF");
  const absl::Status status = client_.Tokenize(v1::TokenizeRequest()).status();
  EXPECT_EQ(status, absl::InternalError("broken"));
}

TEST_F(InferenceClientTest, UnaryCallsReturnResponses) {
  server_.inference().detokenize_response.set_text("word");
  server_.model().response_script.set_model_name("needle");
  v1::DetokenizeRequest request;
  request.add_token_ids(5);
  EXPECT_EQ(client_.Detokenize(request)->text(), "word");
  EXPECT_EQ(server_.inference().detokenize_request.token_ids(0), 5);
  EXPECT_EQ(client_.GetModelInfo()->model_name(), "needle");
}

TEST_F(InferenceClientTest, ReadsHealthOfGrpcsOwnService) {
  using grpc::health::v1::HealthCheckResponse;
  EXPECT_EQ(*client_.CheckHealth(""), HealthCheckResponse::SERVING);
  EXPECT_EQ(*client_.CheckHealth("draining"), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(client_.CheckHealth("nobody").status().code(), absl::StatusCode::kNotFound);
}

TEST(ChannelTest, NobodyListeningIsUnavailable) {
  InferenceClient client(MakeChannel("unix:/nonexistent/tidal.sock"));
  EXPECT_EQ(client.GetModelInfo().status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace tidal::client
