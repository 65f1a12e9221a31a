// Tokens and limits of clients, over real gRPC.
#include <gmock/gmock.h>
#include <grpcpp/client_context.h>
#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/access_control.h"
#include "tests/server/test_server.h"

namespace tidal::server {
namespace {

using inference::v1::GenerateRequest;
using inference::v1::GenerateResponse;
using inference::v1::GenerateStreamRequest;
using inference::v1::GenerateStreamResponse;
using testing::HasSubstr;

constexpr char kAliceToken[] = "alice-0123456789";
constexpr char kBobToken[] = "bob-0123456789ab";

TEST(HostOfPeerTest, LeavesPortsOut) {
  EXPECT_EQ(HostOfPeer("ipv4:10.0.0.7:4711"), "10.0.0.7");
  EXPECT_EQ(HostOfPeer("ipv6:%5Bfe80::1%5D:4711"), "[fe80::1]");
  EXPECT_EQ(HostOfPeer("unix:"), "unix");
  EXPECT_EQ(HostOfPeer("unix:/run/tidal"), "unix");
  EXPECT_EQ(HostOfPeer("something"), "something");
  EXPECT_EQ(HostOfPeer("ipv6:odd:1"), "ipv6:odd:1");
}

TestServerOptions WithTokens() {
  TestServerOptions options;
  const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
  options.auth_token_file = absl::StrCat(testing::TempDir(), "/", test->name(), ".tokens");
  std::ofstream(options.auth_token_file)
      << "alice:" << kAliceToken << "\nbob:" << kBobToken << "\n";
  return options;
}

class TokenTest : public testing::Test {
 protected:
  // The call's status with these `authorization` metadata.
  grpc::Status Generate(const std::vector<std::string>& authorizations) {
    grpc::ClientContext context;
    for (const std::string& value : authorizations) context.AddMetadata("authorization", value);
    GenerateRequest request;
    request.set_text("hello");
    request.mutable_stopping()->set_max_new_tokens(3);
    GenerateResponse response;
    return server_.NewStub()->Generate(&context, request, &response);
  }

  TestServer server_{WithTokens()};
};

TEST_F(TokenTest, LetsInWhoHasAToken) {
  EXPECT_TRUE(Generate({absl::StrCat("Bearer ", kAliceToken)}).ok());
  EXPECT_TRUE(Generate({absl::StrCat("bearer ", kBobToken)}).ok());
}

TEST_F(TokenTest, RefusesEverybodyElseWithTheSameWords) {
  const std::vector<std::vector<std::string>> cases = {
      {},
      {""},
      {"Bearer"},
      {"Bearer "},
      {kAliceToken},
      {absl::StrCat("Basic ", kAliceToken)},
      {absl::StrCat("Bearer ", kAliceToken, "x")},
      {absl::StrCat("Bearer alice:", kAliceToken)},
      {"Bearer alice"},
      {absl::StrCat("Bearer ", kAliceToken), absl::StrCat("Bearer ", kAliceToken)}};
  for (const std::vector<std::string>& authorizations : cases) {
    const grpc::Status status = Generate(authorizations);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
    EXPECT_EQ(status.error_message(), "a valid bearer token is needed");
  }
  EXPECT_EQ(server_.NumCalls("Generate", grpc::StatusCode::UNAUTHENTICATED),
            static_cast<double>(cases.size()));
}

TEST_F(TokenTest, EveryMethodAsksForOne) {
  const auto stub = server_.NewStub();
  {
    grpc::ClientContext context;
    const auto reader = stub->GenerateStream(&context, GenerateStreamRequest());
    GenerateStreamResponse event;
    EXPECT_FALSE(reader->Read(&event));
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  }
  {
    grpc::ClientContext context;
    inference::v1::TokenizeResponse response;
    EXPECT_EQ(stub->Tokenize(&context, {}, &response).error_code(),
              grpc::StatusCode::UNAUTHENTICATED);
  }
  {
    grpc::ClientContext context;
    inference::v1::DetokenizeResponse response;
    EXPECT_EQ(stub->Detokenize(&context, {}, &response).error_code(),
              grpc::StatusCode::UNAUTHENTICATED);
  }
  grpc::ClientContext context;
  inference::v1::GetModelInfoResponse response;
  EXPECT_EQ(server_.NewModelStub()->GetModelInfo(&context, {}, &response).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(TokenTest, SaysNothingOfItsStateToStrangers) {
  server_.lifecycle().Drain();
  EXPECT_EQ(Generate({}).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Generate({absl::StrCat("Bearer ", kAliceToken)}).error_code(),
            grpc::StatusCode::UNAVAILABLE);
}

// Starts a stream, which ends when it goes out of scope.
class OpenStream {
 public:
  OpenStream(TestServer* server, const std::string& token)
      : stub_(server->NewStub()), reader_(Start(token)) {
    GenerateStreamResponse event;
    has_started_ = reader_->Read(&event);
  }
  ~OpenStream() {
    if (reader_ == nullptr) return;
    context_.TryCancel();
    Finish();
  }
  bool has_started() const { return has_started_; }
  grpc::Status Finish() {
    GenerateStreamResponse event;
    while (reader_->Read(&event)) {
    }
    const grpc::Status status = reader_->Finish();
    reader_.reset();
    return status;
  }

 private:
  std::unique_ptr<grpc::ClientReader<GenerateStreamResponse>> Start(const std::string& token) {
    context_.AddMetadata("authorization", absl::StrCat("Bearer ", token));
    GenerateStreamRequest request;
    request.set_text("hello");
    request.mutable_stopping()->set_max_new_tokens(10);
    return stub_->GenerateStream(&context_, request);
  }

  std::unique_ptr<inference::v1::InferenceService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<GenerateStreamResponse>> reader_;
  bool has_started_ = false;
};

google::rpc::RetryInfo RetryInfoOf(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::RetryInfo retry_info;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_TRUE(details.details_size() == 1 && details.details(0).UnpackTo(&retry_info));
  return retry_info;
}

TEST(ClientLimitTest, RequestsInFlightAreCountedForEachName) {
  TestServerOptions options = WithTokens();
  options.client_limits.max_requests = 1;
  TestServer server(options);
  server.gate().Close();
  server.gate().Allow(1);
  OpenStream first(&server, kAliceToken);
  ASSERT_TRUE(first.has_started());
  OpenStream second(&server, kAliceToken);
  EXPECT_FALSE(second.has_started());
  const grpc::Status refusal = second.Finish();
  EXPECT_EQ(refusal.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refusal.error_message(), HasSubstr("limit 1"));
  EXPECT_EQ(RetryInfoOf(refusal).retry_delay().seconds(), 1);
  server.gate().Open();
  EXPECT_TRUE(OpenStream(&server, kBobToken).Finish().ok());
  EXPECT_TRUE(first.Finish().ok());
  ASSERT_TRUE(server.lifecycle().WaitForCalls(absl::Seconds(60)));
  EXPECT_TRUE(OpenStream(&server, kAliceToken).Finish().ok());
}

TEST(ClientLimitTest, PromptAndGeneratedTokensArePaidFor) {
  TestServerOptions options = WithTokens();
  options.client_limits.max_tokens_per_minute = 12;  // less than "hello" and ten more
  TestServer server(options);
  EXPECT_TRUE(OpenStream(&server, kAliceToken).Finish().ok());
  ASSERT_TRUE(server.lifecycle().WaitForCalls(absl::Seconds(60)));
  const grpc::Status refusal = OpenStream(&server, kAliceToken).Finish();
  EXPECT_EQ(refusal.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refusal.error_message(), HasSubstr("12 tokens a minute"));
  // A token every five seconds; three of debt and one to go on with.
  EXPECT_GT(RetryInfoOf(refusal).retry_delay().seconds(), 0);
  EXPECT_LE(RetryInfoOf(refusal).retry_delay().seconds(), 20);
  EXPECT_TRUE(OpenStream(&server, kBobToken).Finish().ok());
}

}  // namespace
}  // namespace tidal::server
