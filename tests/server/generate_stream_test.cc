// Streams over real gRPC: order of events, slow readers, cancels, and many at once.
#include <gmock/gmock.h>
#include <grpcpp/client_context.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "tests/server/test_server.h"

namespace tidal::server {
namespace {

using inference::v1::GenerateStreamRequest;
using inference::v1::GenerateStreamResponse;
using testing::HasSubstr;

GenerateStreamRequest RequestFor(const std::string& text, int max_new_tokens) {
  GenerateStreamRequest request;
  request.set_text(text);
  request.mutable_stopping()->set_max_new_tokens(max_new_tokens);
  return request;
}

// What a stream has said so far, checked for its order.
struct Transcript {
  bool has_started = false;
  int num_deltas = 0;
  std::string text;
  int num_tokens = 0;
  int num_prefilled = 0;
  int num_largest_delta_tokens = 0;
  std::vector<GenerateStreamResponse::Finished> finished;

  void Add(const GenerateStreamResponse& event) {
    EXPECT_TRUE(finished.empty()) << "nothing comes after `finished`";
    switch (event.event_case()) {
      case GenerateStreamResponse::kStarted:
        EXPECT_FALSE(has_started);
        has_started = true;
        break;
      case GenerateStreamResponse::kProgress:
        EXPECT_TRUE(has_started);
        EXPECT_GT(event.progress().prefilled_tokens(), num_prefilled);
        num_prefilled = event.progress().prefilled_tokens();
        break;
      case GenerateStreamResponse::kDelta:
        EXPECT_TRUE(has_started);
        ++num_deltas;
        text += event.delta().text();
        num_tokens += event.delta().token_ids_size();
        num_largest_delta_tokens =
            std::max(num_largest_delta_tokens, event.delta().token_ids_size());
        break;
      case GenerateStreamResponse::kFinished:
        EXPECT_TRUE(has_started);
        finished.push_back(event.finished());
        break;
      case GenerateStreamResponse::EVENT_NOT_SET:
        ADD_FAILURE() << "an empty event";
    }
  }
};

void ExpectNothingLeft(TestServer* server) {
  EXPECT_TRUE(server->lifecycle().WaitForCalls(absl::Seconds(60)));
  EXPECT_TRUE(server->engine().WaitUntilIdle(absl::Seconds(60)));
  const EngineLoad load = server->engine().load();
  EXPECT_EQ(load.num_used_blocks, 0);
  EXPECT_EQ(load.num_running_requests, 0);
  EXPECT_EQ(load.num_waiting_requests, 0);
}

TEST(GenerateStreamTest, SendsStartedProgressDeltasAndFinished) {
  TestServer server;
  const std::string prompt(150, 'p');  // three chunks of at most 64
  grpc::ClientContext context;
  const auto stub = server.NewStub();
  GenerateStreamRequest request = RequestFor(prompt, 20);
  request.set_request_id("stream-1");
  request.mutable_sampling()->set_seed(5);
  const auto reader = stub->GenerateStream(&context, request);
  Transcript transcript;
  GenerateStreamResponse event;
  ASSERT_TRUE(reader->Read(&event));
  ASSERT_TRUE(event.has_started());
  EXPECT_EQ(event.started().request_id(), "stream-1");
  EXPECT_EQ(event.started().prompt_tokens(), 150);
  EXPECT_EQ(event.started().seed(), 5u);
  EXPECT_EQ(event.started().attention().mode(), inference::v1::ATTENTION_MODE_TIDAL);
  transcript.Add(event);
  while (reader->Read(&event)) transcript.Add(event);
  const grpc::Status status = reader->Finish();
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(transcript.num_prefilled, 150);
  EXPECT_EQ(transcript.text, TestServer::ExpectedText(prompt, 20));
  EXPECT_EQ(transcript.num_tokens, 20);
  ASSERT_EQ(transcript.finished.size(), 1u);
  EXPECT_EQ(transcript.finished[0].finish_reason(), inference::v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(transcript.finished[0].usage().generated_tokens(), 20);
  ExpectNothingLeft(&server);
}

TEST(GenerateStreamTest, SendsDeltasOfEveryChoiceAndHowItEnded) {
  TestServer server;
  const auto stub = server.NewStub();
  grpc::ClientContext context;
  GenerateStreamRequest request = RequestFor("hello", 20);
  request.set_num_choices(3);
  const auto reader = stub->GenerateStream(&context, request);
  Transcript transcript;
  std::map<int, std::string> texts;
  std::map<int, int> num_endings;
  GenerateStreamResponse event;
  while (reader->Read(&event)) {
    transcript.Add(event);
    if (!event.has_delta()) continue;
    const int choice = event.delta().choice_index();
    EXPECT_EQ(num_endings[choice], 0) << "nothing comes after a choice's end";
    texts[choice] += event.delta().text();
    if (event.delta().finish_reason() == inference::v1::FINISH_REASON_LENGTH) ++num_endings[choice];
  }
  ASSERT_TRUE(reader->Finish().ok());
  const std::string expected = TestServer::ExpectedText("hello", 20);
  EXPECT_EQ(texts, (std::map<int, std::string>{{0, expected}, {1, expected}, {2, expected}}));
  EXPECT_EQ(num_endings, (std::map<int, int>{{0, 1}, {1, 1}, {2, 1}}));
  ASSERT_EQ(transcript.finished.size(), 1u);
  EXPECT_EQ(transcript.finished[0].usage().generated_tokens(), 60);
  EXPECT_EQ(transcript.finished[0].usage().prompt_tokens(), 5);
  ExpectNothingLeft(&server);
}

TEST(GenerateStreamTest, RefusesWhatIsInvalidWithoutAnyEvent) {
  TestServer server;
  grpc::ClientContext context;
  const auto stub = server.NewStub();
  const auto reader = stub->GenerateStream(&context, RequestFor("a", -1));
  GenerateStreamResponse event;
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  ExpectNothingLeft(&server);
}

TEST(GenerateStreamTest, DeliversEachTokenToAReaderThatKeepsUp) {
  TestServer server;
  server.gate().Close();
  grpc::ClientContext context;
  const auto stub = server.NewStub();
  const auto reader = stub->GenerateStream(&context, RequestFor("hello", 5));
  Transcript transcript;
  GenerateStreamResponse event;
  for (int step = 0; step < 5; ++step) {
    server.gate().Allow(1);
    while (transcript.num_tokens <= step && reader->Read(&event)) transcript.Add(event);
    EXPECT_EQ(transcript.num_tokens, step + 1);
  }
  while (reader->Read(&event)) transcript.Add(event);
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(transcript.num_deltas, 5);
}

// A client that has seen the beginning of its stream and then reads no more, while the engine goes
// on.
class SlowReaderTest : public testing::Test {
 protected:
  static constexpr int kNumTokens = 3900;

  void StartStream(const TestServerOptions& options) {
    server_ = std::make_unique<TestServer>(options);
    stub_ = server_->NewSeparateStub();
    // Log-probabilities make the output large: it exceeds what the connection buffers.
    GenerateStreamRequest request = RequestFor("hello", kNumTokens);
    request.mutable_output()->set_num_top_logprobs(0);
    reader_ = stub_->GenerateStream(&context_, request);
    GenerateStreamResponse event;
    ASSERT_TRUE(reader_->Read(&event));
    transcript_.Add(event);
  }

  void ReadToTheEnd() {
    GenerateStreamResponse event;
    while (reader_->Read(&event)) transcript_.Add(event);
    status_ = reader_->Finish();
  }

  std::unique_ptr<TestServer> server_;
  std::unique_ptr<inference::v1::InferenceService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<GenerateStreamResponse>> reader_;
  Transcript transcript_;
  grpc::Status status_;
};

TEST_F(SlowReaderTest, GetsSeveralTokensInOneDeltaAndHoldsNobodyUp) {
  StartStream({});
  // The engine finishes although nobody reads.
  ASSERT_TRUE(server_->engine().WaitUntilIdle(absl::Seconds(60)));
  ReadToTheEnd();
  ASSERT_TRUE(status_.ok()) << status_.error_message();
  EXPECT_EQ(transcript_.text, TestServer::ExpectedText("hello", kNumTokens));
  EXPECT_EQ(transcript_.num_tokens, kNumTokens);
  EXPECT_LT(transcript_.num_deltas, kNumTokens);
  EXPECT_GT(transcript_.num_largest_delta_tokens, 1);
  ASSERT_EQ(transcript_.finished.size(), 1u);
  ExpectNothingLeft(server_.get());
}

TEST_F(SlowReaderTest, IsCancelledWhereTooMuchIsPending) {
  TestServerOptions options;
  options.generate.max_pending_response_bytes = 2000;
  StartStream(options);
  ASSERT_TRUE(server_->engine().WaitUntilIdle(absl::Seconds(60)));
  ReadToTheEnd();
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status_.error_message(),
            "the stream is read too slowly: more than 2000 bytes of output are pending");
  EXPECT_TRUE(transcript_.finished.empty());
  EXPECT_LT(transcript_.num_tokens, kNumTokens);
  ExpectNothingLeft(server_.get());
  EXPECT_EQ(server_->NumCalls("GenerateStream", grpc::StatusCode::RESOURCE_EXHAUSTED), 1);
}

TEST_F(SlowReaderTest, ThatReadsNowAndThenIsWaitedFor) {
  StreamWatch watch(absl::Hours(1));
  TestServerOptions options;
  options.generate.stream_watch = &watch;
  StartStream(options);
  ASSERT_TRUE(server_->engine().WaitUntilIdle(absl::Seconds(60)));
  ReadToTheEnd();
  EXPECT_TRUE(status_.ok()) << status_.error_message();
  EXPECT_EQ(transcript_.num_tokens, kNumTokens);
  ExpectNothingLeft(server_.get());
  server_.reset();
}

TEST_F(SlowReaderTest, ThatVanishesLeavesNothingBehind) {
  StartStream({});
  context_.TryCancel();
  GenerateStreamResponse event;
  while (reader_->Read(&event)) {
  }
  EXPECT_EQ(reader_->Finish().error_code(), grpc::StatusCode::CANCELLED);
  ExpectNothingLeft(server_.get());
}

TEST(GenerateStreamTest, ACancelFreesAQueuedRequest) {
  TestServerOptions options;
  options.engine.max_running_requests = 1;
  TestServer server(options);
  server.gate().Close();
  const auto stub = server.NewStub();
  grpc::ClientContext running_context;
  const auto running = stub->GenerateStream(&running_context, RequestFor("a", 3));
  server.gate().WaitForArrival();
  grpc::ClientContext queued_context;
  const auto queued = stub->GenerateStream(&queued_context, RequestFor("b", 3));
  queued_context.TryCancel();
  GenerateStreamResponse event;
  EXPECT_FALSE(queued->Read(&event));
  EXPECT_EQ(queued->Finish().error_code(), grpc::StatusCode::CANCELLED);
  server.gate().Open();
  Transcript transcript;
  while (running->Read(&event)) transcript.Add(event);
  EXPECT_TRUE(running->Finish().ok());
  EXPECT_EQ(transcript.text, TestServer::ExpectedText("a", 3));
  ExpectNothingLeft(&server);
}

TEST(GenerateStreamTest, ACancelDuringALongPrefillEndsIt) {
  TestServer server;
  server.gate().Close();
  const auto stub = server.NewStub();
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, RequestFor(std::string(4000, 'p'), 3));
  server.gate().Allow(2);
  GenerateStreamResponse event;
  while (reader->Read(&event) && !event.has_progress()) {
  }
  EXPECT_LT(event.progress().prefilled_tokens(), 4000);
  context.TryCancel();
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  server.gate().Open();
  ExpectNothingLeft(&server);
}

TEST(GenerateStreamTest, EndsAtItsDeadlineInTheMiddleOfItsOutput) {
  TestServer server;
  server.gate().Close();
  server.gate().Allow(3);
  const auto stub = server.NewStub();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  const auto reader = stub->GenerateStream(&context, RequestFor("hello", 100));
  Transcript transcript;
  GenerateStreamResponse event;
  while (reader->Read(&event)) transcript.Add(event);
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_LE(transcript.num_tokens, 3);
  server.gate().Open();
  ExpectNothingLeft(&server);
}

TEST(GenerateStreamTest, ManyStreamsWithCancelsAtAnyMoment) {
  TestServerOptions options;
  options.engine.num_blocks = 256;  // few enough for preemptions
  options.engine.max_model_len = 1024;
  TestServer server(options);
  constexpr int kNumClients = 8;
  constexpr int kNumStreamsEach = 12;
  std::vector<std::thread> clients;
  for (int client = 0; client < kNumClients; ++client) {
    clients.emplace_back([&server, client] {
      std::mt19937 random(static_cast<unsigned>(client));
      const auto stub = client % 2 == 0 ? server.NewStub() : server.NewSeparateStub();
      for (int i = 0; i < kNumStreamsEach; ++i) {
        const std::string prompt(1 + random() % 500, static_cast<char>('A' + client));
        const int num_tokens = 1 + static_cast<int>(random() % 200);
        const bool cancels = random() % 2 == 0;
        const int cancel_after = static_cast<int>(random() % 60);
        grpc::ClientContext context;
        const auto reader = stub->GenerateStream(&context, RequestFor(prompt, num_tokens));
        Transcript transcript;
        GenerateStreamResponse event;
        int num_events = 0;
        if (cancels && cancel_after == 0) context.TryCancel();
        while (reader->Read(&event)) {
          transcript.Add(event);
          if (cancels && ++num_events == cancel_after) context.TryCancel();
        }
        const grpc::Status status = reader->Finish();
        if (status.ok()) {
          EXPECT_EQ(transcript.text, TestServer::ExpectedText(prompt, num_tokens));
          EXPECT_EQ(transcript.finished.size(), 1u);
        } else {
          EXPECT_TRUE(cancels) << status.error_message();
          EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED) << status.error_message();
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ExpectNothingLeft(&server);
}

}  // namespace
}  // namespace tidal::server
