// The services over real gRPC, with a real engine on a fake model.
#include "server/inference_service.h"

#include <gmock/gmock.h>
#include <grpcpp/client_context.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/server/test_server.h"

namespace tidal::server {
namespace {

using inference::v1::GenerateRequest;
using inference::v1::GenerateResponse;
using testing::ElementsAre;
using testing::HasSubstr;

GenerateRequest RequestFor(const std::string& text, int max_new_tokens) {
  GenerateRequest request;
  request.set_text(text);
  request.mutable_stopping()->set_max_new_tokens(max_new_tokens);
  return request;
}

grpc::Status Generate(TestServer* server, const GenerateRequest& request,
                      GenerateResponse* response) {
  grpc::ClientContext context;
  return server->NewStub()->Generate(&context, request, response);
}

google::rpc::Status DetailsOf(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  return details;
}

TEST(GenerateTest, AnswersWithTheWholeTextAndWhatItRanWith) {
  TestServer server;
  GenerateRequest request = RequestFor("hello", 40);
  request.set_request_id("my-id");
  request.mutable_sampling()->set_seed(7);
  GenerateResponse response;
  const grpc::Status status = Generate(&server, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.request_id(), "my-id");
  EXPECT_EQ(response.seed(), 7u);
  ASSERT_EQ(response.choices_size(), 1);
  EXPECT_EQ(response.choices(0).text(), TestServer::ExpectedText("hello", 40));
  EXPECT_EQ(response.choices(0).token_ids_size(), 40);
  EXPECT_EQ(response.choices(0).logprobs_size(), 0);
  EXPECT_EQ(response.choices(0).finish_reason(), inference::v1::FINISH_REASON_LENGTH);
  EXPECT_FALSE(response.choices(0).has_matched_stop());
  EXPECT_EQ(response.usage().prompt_tokens(), 5);
  EXPECT_EQ(response.usage().generated_tokens(), 40);
  EXPECT_LT(response.usage().attended_tokens(), response.usage().available_tokens());
  EXPECT_GT(response.timings().end_to_end_seconds(), 0.0);
  EXPECT_EQ(response.attention().mode(), inference::v1::ATTENTION_MODE_TIDAL);
  EXPECT_EQ(response.attention().token_budget(), 32);
  EXPECT_EQ(response.attention().selection_scope(), inference::v1::SELECTION_SCOPE_KV_HEAD);
  EXPECT_THAT(response.attention().full_layers(), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(response.attention().selection_layers(), ElementsAre(2, 3));
}

TEST(GenerateTest, EchoesFullAttentionWithoutFurtherFields) {
  TestServer server;
  GenerateRequest request = RequestFor("hello", 2);
  request.mutable_attention()->set_mode(inference::v1::ATTENTION_MODE_FULL);
  GenerateResponse response;
  ASSERT_TRUE(Generate(&server, request, &response).ok());
  inference::v1::EffectiveAttention expected;
  expected.set_mode(inference::v1::ATTENTION_MODE_FULL);
  EXPECT_EQ(response.attention().SerializeAsString(), expected.SerializeAsString());
}

TEST(GenerateTest, AnswersWithEveryChoice) {
  TestServer server;
  GenerateRequest request = RequestFor("hello", 10);
  request.set_num_choices(3);
  GenerateResponse response;
  ASSERT_TRUE(Generate(&server, request, &response).ok());
  ASSERT_EQ(response.choices_size(), 3);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(response.choices(i).index(), i);
    EXPECT_EQ(response.choices(i).text(), TestServer::ExpectedText("hello", 10));
    EXPECT_EQ(response.choices(i).finish_reason(), inference::v1::FINISH_REASON_LENGTH);
  }
  EXPECT_EQ(response.usage().generated_tokens(), 30);
}

TEST(GenerateTest, MakesRequestIdAndSeedWhereThereAreNone) {
  TestServer server;
  GenerateResponse first;
  GenerateResponse second;
  ASSERT_TRUE(Generate(&server, RequestFor("a", 1), &first).ok());
  ASSERT_TRUE(Generate(&server, RequestFor("a", 1), &second).ok());
  EXPECT_EQ(first.request_id().size(), 16u);
  EXPECT_NE(first.request_id(), second.request_id());
  EXPECT_NE(first.seed(), second.seed());
}

TEST(GenerateTest, StopsAtAStopStringAndNamesIt) {
  TestServer server;
  const std::string text = TestServer::ExpectedText("hello", 40);
  GenerateRequest request = RequestFor("hello", 40);
  request.mutable_stopping()->add_stop_strings(text.substr(10, 3));
  GenerateResponse response;
  ASSERT_TRUE(Generate(&server, request, &response).ok());
  EXPECT_EQ(response.choices(0).text(), text.substr(0, 10));
  EXPECT_EQ(response.choices(0).finish_reason(), inference::v1::FINISH_REASON_STOP_STRING);
  EXPECT_EQ(response.choices(0).matched_stop().text(), text.substr(10, 3));
}

TEST(GenerateTest, StopsAtAStopTokenAndNamesIt) {
  TestServer server;
  const std::string text = TestServer::ExpectedText("hello", 40);
  GenerateRequest request = RequestFor("hello", 40);
  request.mutable_stopping()->add_stop_token_ids(text[0]);
  GenerateResponse response;
  ASSERT_TRUE(Generate(&server, request, &response).ok());
  EXPECT_EQ(response.choices(0).text(), "");
  EXPECT_EQ(response.choices(0).finish_reason(), inference::v1::FINISH_REASON_STOP_TOKEN);
  EXPECT_EQ(response.choices(0).matched_stop().token_id(), text[0]);
}

TEST(GenerateTest, ReturnsLogprobsWithTheTokensBytes) {
  TestServer server;
  GenerateRequest request = RequestFor("hello", 3);
  request.mutable_output()->set_num_top_logprobs(0);
  GenerateResponse response;
  ASSERT_TRUE(Generate(&server, request, &response).ok());
  ASSERT_EQ(response.choices(0).logprobs_size(), 3);
  EXPECT_EQ(response.choices(0).logprobs(1).token(), response.choices(0).text().substr(1, 1));
  EXPECT_EQ(response.choices(0).logprobs(1).token_id(), response.choices(0).token_ids(1));
}

TEST(GenerateTest, RefusesWhatIsInvalidWithDetails) {
  TestServer server;
  GenerateRequest request = RequestFor("hello", 3);
  request.mutable_sampling()->set_top_p(1.5f);
  GenerateResponse response;
  const grpc::Status status = Generate(&server, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "sampling.top_p: 1.5 is not in (0, 1]");
  google::rpc::BadRequest bad_request;
  ASSERT_TRUE(DetailsOf(status).details(0).UnpackTo(&bad_request));
  EXPECT_EQ(bad_request.field_violations(0).field(), "sampling.top_p");
}

TEST(GenerateTest, TheLongestErrorStillReachesTheClient) {
  TestServer server;
  GenerateRequest request = RequestFor("hello", 3);
  for (int i = 0; i < 1000; ++i) {
    (*request.mutable_sampling()->mutable_logit_bias())[-2'000'000'000 - i] = -1.2345678e37f;
  }
  GenerateResponse response;
  const grpc::Status status = Generate(&server, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("sampling.logit_bias"));
  EXPECT_EQ(DetailsOf(status).details_size(), 1);
}

TEST(GenerateTest, RefusesAnIdThatIsLive) {
  TestServer server;
  server.gate().Close();
  GenerateRequest request = RequestFor("hello", 3);
  request.set_request_id("same");
  GenerateResponse first_response;
  std::thread first([&] { EXPECT_TRUE(Generate(&server, request, &first_response).ok()); });
  server.gate().WaitForArrival();
  GenerateResponse response;
  EXPECT_EQ(Generate(&server, request, &response).error_code(), grpc::StatusCode::ALREADY_EXISTS);
  server.gate().Open();
  first.join();
}

TEST(GenerateTest, RefusesWhatAFullQueueCannotTakeAndSaysWhenToRetry) {
  TestServerOptions options;
  options.engine.max_queued_requests = 1;
  options.engine.max_running_requests = 1;
  TestServer server(options);
  server.gate().Close();
  std::thread running([&server] {
    GenerateResponse response;
    EXPECT_TRUE(Generate(&server, RequestFor("a", 2), &response).ok());
  });
  server.gate().WaitForArrival();
  // One waits; of two more, one at least is refused.
  std::vector<std::thread> threads;
  std::atomic<int> num_refused = 0;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&server, &num_refused] {
      GenerateResponse response;
      const grpc::Status status = Generate(&server, RequestFor("b", 2), &response);
      if (status.ok()) return;
      EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
      google::rpc::RetryInfo retry_info;
      EXPECT_TRUE(DetailsOf(status).details(0).UnpackTo(&retry_info));
      if (++num_refused == 2) server.gate().Open();
    });
  }
  for (std::thread& thread : threads) thread.join();
  running.join();
  EXPECT_EQ(num_refused, 2);
}

TEST(GenerateTest, EndsAtItsDeadline) {
  TestServer server;
  server.gate().Close();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  GenerateResponse response;
  const grpc::Status status =
      server.NewStub()->Generate(&context, RequestFor("hello", 1000), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  server.gate().Open();
  EXPECT_TRUE(server.lifecycle().WaitForCalls(absl::Seconds(30)));
  EXPECT_TRUE(server.engine().WaitUntilIdle(absl::Seconds(30)));
  EXPECT_EQ(server.engine().load().num_used_blocks, 0);
}

TEST(GenerateTest, AnUnaryResponseHasALimit) {
  TestServerOptions options;
  options.generate.max_unary_response_bytes = 100;
  TestServer server(options);
  GenerateResponse response;
  const grpc::Status status = Generate(&server, RequestFor("hello", 1000), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "the response has more than 100 bytes; use GenerateStream");
}

TEST(GenerateTest, AFaultOfTheEngineIsInternalToEveryRequest) {
  TestServer server;
  server.FailNextStep(absl::DataLossError("device lost"));
  GenerateResponse response;
  const grpc::Status status = Generate(&server, RequestFor("hello", 3), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(status.error_message(), HasSubstr("device lost"));
  EXPECT_TRUE(server.lifecycle().WaitForEnd(absl::Seconds(30)));
  EXPECT_EQ(server.lifecycle().fault().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(Generate(&server, RequestFor("hello", 3), &response).error_code(),
            grpc::StatusCode::INTERNAL);
}

TEST(ServicesTest, AnswerUnavailableUntilTheModelIsLoaded) {
  TestServerOptions options;
  options.is_loaded = false;
  TestServer server(options);
  GenerateResponse response;
  const grpc::Status status = Generate(&server, RequestFor("hello", 3), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "the server is loading its model");
  {
    grpc::ClientContext context;
    inference::v1::GenerateStreamRequest request;
    const auto reader = server.NewStub()->GenerateStream(&context, request);
    inference::v1::GenerateStreamResponse event;
    EXPECT_FALSE(reader->Read(&event));
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  }
  {
    grpc::ClientContext context;
    inference::v1::GetModelInfoResponse info;
    EXPECT_EQ(server.NewModelStub()->GetModelInfo(&context, {}, &info).error_code(),
              grpc::StatusCode::UNAVAILABLE);
  }
  server.LoadModel();
  EXPECT_TRUE(Generate(&server, RequestFor("hello", 3), &response).ok());
  grpc::ClientContext context;
  inference::v1::GetModelInfoResponse info;
  ASSERT_TRUE(server.NewModelStub()->GetModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.model_name(), "fake");
}

TEST(ServicesTest, TokenizeAndDetokenize) {
  TestServer server;
  inference::v1::TokenizeRequest tokenize;
  tokenize.set_text("abc");
  inference::v1::TokenizeResponse tokens;
  grpc::ClientContext tokenize_context;
  ASSERT_TRUE(server.NewStub()->Tokenize(&tokenize_context, tokenize, &tokens).ok());
  EXPECT_THAT(tokens.token_ids(), ElementsAre('a', 'b', 'c'));
  EXPECT_THAT(tokens.tokens(), ElementsAre("a", "b", "c"));

  inference::v1::DetokenizeRequest detokenize;
  *detokenize.mutable_token_ids() = tokens.token_ids();
  inference::v1::DetokenizeResponse text;
  grpc::ClientContext detokenize_context;
  ASSERT_TRUE(server.NewStub()->Detokenize(&detokenize_context, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "abc");

  detokenize.add_token_ids(-1);
  grpc::ClientContext refused_context;
  EXPECT_EQ(server.NewStub()->Detokenize(&refused_context, detokenize, &text).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(ServicesTest, CountEveryCallByMethodAndCode) {
  TestServer server;
  GenerateResponse response;
  EXPECT_TRUE(Generate(&server, RequestFor("hello", 3), &response).ok());
  EXPECT_EQ(Generate(&server, RequestFor("hello", -3), &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(server.lifecycle().WaitForCalls(absl::Seconds(30)));
  EXPECT_EQ(server.NumCalls("Generate", grpc::StatusCode::OK), 1);
  EXPECT_EQ(server.NumCalls("Generate", grpc::StatusCode::INVALID_ARGUMENT), 1);
}

TEST(ServicesTest, RefuseAMessageBeyondTheReceiveLimit) {
  TestServerOptions options;
  options.max_receive_message_bytes = 1000;
  TestServer server(options);
  GenerateResponse response;
  EXPECT_EQ(Generate(&server, RequestFor(std::string(2000, 'a'), 3), &response).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(ServicesTest, RefuseTextThatIsNotUtf8AsTheClientsFault) {
  TestServer server;
  GenerateResponse response;
  const grpc::Status status = Generate(&server, RequestFor("\xff", 3), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("not UTF-8"));
  EXPECT_EQ(server.NumCalls("Generate", grpc::StatusCode::INVALID_ARGUMENT), 1);
}

TEST(GrpcServerTest, RefusesAPortThatIsTaken) {
  TestServer server;
  const absl::Status status =
      GrpcServer::Start({.listen_address = absl::StrCat("127.0.0.1:", server.grpc_server().port())},
                        {}, nullptr)
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--listen_address: cannot listen on"));
}

}  // namespace
}  // namespace tidal::server
