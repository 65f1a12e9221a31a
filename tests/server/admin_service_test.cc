// The operator's service beside a running one, over real gRPC.
#include "server/admin_service.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/server/test_server.h"

namespace tidal::server {
namespace {

using inference::v1::AbortRequestRequest;
using inference::v1::AdminService;
using inference::v1::GenerateStreamRequest;
using inference::v1::GenerateStreamResponse;

class AdminServiceTest : public testing::Test {
 protected:
  explicit AdminServiceTest(TestServerOptions options = {}) : server_(std::move(options)) {
    absl::StatusOr<std::unique_ptr<GrpcServer>> listening =
        GrpcServer::Start({.listen_address = "127.0.0.1:0"}, {&service_}, nullptr);
    EXPECT_TRUE(listening.ok()) << listening.status();
    admin_server_ = *std::move(listening);
    stub_ = AdminService::NewStub(grpc::CreateChannel(
        absl::StrCat("127.0.0.1:", admin_server_->port()), grpc::InsecureChannelCredentials()));
  }

  grpc::Status Abort(const std::string& request_id) {
    grpc::ClientContext context;
    AbortRequestRequest request;
    request.set_request_id(request_id);
    inference::v1::AbortRequestResponse response;
    return stub_->AbortRequest(&context, request, &response);
  }

  grpc::Status Drain(inference::v1::DrainResponse* response) {
    grpc::ClientContext context;
    return stub_->Drain(&context, {}, response);
  }

  grpc::Status Flush(inference::v1::FlushPrefixCacheResponse* response) {
    grpc::ClientContext context;
    return stub_->FlushPrefixCache(&context, {}, response);
  }

  std::unique_ptr<grpc::ClientReader<GenerateStreamResponse>> Start(grpc::ClientContext* context,
                                                                    const std::string& id) {
    GenerateStreamRequest request;
    request.set_request_id(id);
    request.set_text(std::string(200, 'p'));  // four chunks
    request.mutable_stopping()->set_max_new_tokens(10);
    return inference_stub_->GenerateStream(context, request);
  }

  static grpc::Status Finish(grpc::ClientReader<GenerateStreamResponse>* reader) {
    GenerateStreamResponse event;
    while (reader->Read(&event)) {
    }
    return reader->Finish();
  }

  void ExpectAborted(grpc::ClientReader<GenerateStreamResponse>* reader) {
    const grpc::Status status = Finish(reader);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_EQ(status.error_message(), "an operator has aborted the request");
  }

  TestServer server_;
  AccessControl access_;
  AdminServiceImpl service_{&server_.lifecycle(), &server_.metrics(), &access_};
  std::unique_ptr<GrpcServer> admin_server_;
  std::unique_ptr<AdminService::Stub> stub_;
  std::unique_ptr<inference::v1::InferenceService::Stub> inference_stub_ = server_.NewStub();
};

TEST_F(AdminServiceTest, AbortsARequestInItsPrefill) {
  server_.gate().Close();
  server_.gate().Allow(1);
  grpc::ClientContext context;
  const auto reader = Start(&context, "mine");
  GenerateStreamResponse event;
  ASSERT_TRUE(reader->Read(&event));  // it has started
  EXPECT_TRUE(Abort("mine").ok());
  server_.gate().Open();
  ExpectAborted(reader.get());
  EXPECT_EQ(server_.engine().load().num_used_blocks, 0);
  EXPECT_EQ(server_.engine().load().num_used_blocks, 0);
  EXPECT_EQ(Abort("mine").error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(AdminServiceTest, AbortsARequestThatStillGeneratesWhileDraining) {
  server_.gate().Close();
  server_.gate().Allow(5);
  grpc::ClientContext context;
  const auto reader = Start(&context, "mine");
  GenerateStreamResponse event;
  while (reader->Read(&event) && !event.has_delta()) {
  }
  server_.lifecycle().Drain();
  EXPECT_TRUE(Abort("mine").ok());
  server_.gate().Open();
  ExpectAborted(reader.get());
}

TEST_F(AdminServiceTest, SaysWhichRequestIsNotThere) {
  EXPECT_EQ(Abort("").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const grpc::Status status = Abort("nobody");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), "request_id: 'nobody' is not running");
}

TEST_F(AdminServiceTest, DrainAsksForTheEndAndASignalAfterItIsTheFirst) {
  EXPECT_FALSE(server_.lifecycle().WaitForEnd(absl::ZeroDuration()));
  inference::v1::DrainResponse response;
  EXPECT_TRUE(Drain(&response).ok());
  EXPECT_EQ(response.active_calls(), 0);
  EXPECT_TRUE(server_.lifecycle().WaitForEnd(absl::Hours(1)));
  server_.lifecycle().OnSignal();
  EXPECT_FALSE(server_.lifecycle().WaitForUrgency(absl::ZeroDuration()));
}

TEST_F(AdminServiceTest, FlushesThePrefixCache) {
  grpc::ClientContext generation;
  EXPECT_TRUE(Finish(Start(&generation, "mine").get()).ok());
  inference::v1::FlushPrefixCacheResponse response;
  EXPECT_TRUE(Flush(&response).ok());
  EXPECT_GT(response.dropped_blocks(), 0);
  EXPECT_TRUE(Flush(&response).ok());
  EXPECT_EQ(response.dropped_blocks(), 0);
}

TEST_F(AdminServiceTest, OneFlushAtATimeWaitsForTheEngine) {
  server_.gate().Close();
  grpc::ClientContext generation;
  const auto reader = Start(&generation, "mine");
  server_.gate().WaitForArrival();
  std::atomic<int> num_refused = 0;
  std::vector<std::thread> operators;
  for (int i = 0; i < 2; ++i) {
    operators.emplace_back([this, &num_refused] {
      inference::v1::FlushPrefixCacheResponse response;
      const grpc::Status status = Flush(&response);
      if (status.ok()) return;
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
      ++num_refused;
      server_.gate().Open();  // the other one waits for the step
    });
  }
  for (std::thread& thread : operators) thread.join();
  EXPECT_EQ(num_refused, 1);
  EXPECT_TRUE(Finish(reader.get()).ok());
}

class AdminWhileLoadingTest : public AdminServiceTest {
 protected:
  static TestServerOptions NotLoaded() {
    TestServerOptions options;
    options.is_loaded = false;
    return options;
  }
  AdminWhileLoadingTest() : AdminServiceTest(NotLoaded()) {}
};

TEST_F(AdminWhileLoadingTest, HasNothingToDrainAbortOrFlush) {
  inference::v1::DrainResponse response;
  EXPECT_EQ(Drain(&response).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(server_.lifecycle().WaitForEnd(absl::ZeroDuration()));
  EXPECT_EQ(Abort("nobody").error_code(), grpc::StatusCode::NOT_FOUND);
  inference::v1::FlushPrefixCacheResponse flushed;
  EXPECT_EQ(Flush(&flushed).error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace tidal::server
