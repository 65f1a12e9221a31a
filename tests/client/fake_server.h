// A server in this process that answers as a test scripts it. Set the script before the call, read
// the recorded requests after it.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/server.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "google/rpc/error_details.pb.h"
#include "tidal/inference/v1/inference.grpc.pb.h"
#include "tidal/inference/v1/model.grpc.pb.h"

namespace tidal::client {

class FakeInferenceService final : public inference::v1::InferenceService::CallbackService {
 public:
  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const inference::v1::GenerateRequest* request,
                                     inference::v1::GenerateResponse* response) override;
  grpc::ServerWriteReactor<inference::v1::GenerateStreamResponse>* GenerateStream(
      grpc::CallbackServerContext* context,
      const inference::v1::GenerateStreamRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const inference::v1::TokenizeRequest* request,
                                     inference::v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const inference::v1::DetokenizeRequest* request,
                                       inference::v1::DetokenizeResponse* response) override;

  // The script.
  std::vector<inference::v1::GenerateStreamResponse> events;
  bool hold_stream_open = false;  // after the events, until the client cancels
  inference::v1::GenerateResponse generate_response;
  inference::v1::TokenizeResponse tokenize_response;
  inference::v1::DetokenizeResponse detokenize_response;
  grpc::Status status;  // of every call

  int num_unavailable = 0;  // so many calls of GenerateStream fail with UNAVAILABLE first

  // What happened.
  std::string authorization;  // of the last call that generates
  inference::v1::GenerateRequest generate_request;
  inference::v1::GenerateStreamRequest stream_request;
  inference::v1::TokenizeRequest tokenize_request;
  inference::v1::DetokenizeRequest detokenize_request;
  absl::Notification stream_cancelled;
};

class FakeModelService final : public inference::v1::ModelService::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const inference::v1::GetModelInfoRequest* request,
                                         inference::v1::GetModelInfoResponse* response) override;

  inference::v1::GetModelInfoResponse response_script;
};

// Both services, and gRPC's own health service, which knows the name "draining" as NOT_SERVING.
class FakeServer {
 public:
  FakeServer();
  ~FakeServer();

  FakeInferenceService& inference() { return inference_; }
  FakeModelService& model() { return model_; }
  std::shared_ptr<grpc::Channel> MakeChannel();

 private:
  FakeInferenceService inference_;
  FakeModelService model_;
  std::unique_ptr<grpc::Server> server_;
};

// A status that carries `details` as a server of the API sends them.
grpc::Status StatusWithDetails(grpc::StatusCode code, const std::string& message,
                               const google::protobuf::Message& details);

inference::v1::GenerateStreamResponse StartedEvent();
inference::v1::GenerateStreamResponse ProgressEvent(int prefilled_tokens, int total_tokens);
inference::v1::GenerateStreamResponse DeltaEvent(const std::string& text, int token_id);
// 8000 prompt tokens, 5 generated in 0.5 s after the first at 1.25 s, a quarter attended.
inference::v1::GenerateStreamResponse FinishedEvent();

}  // namespace tidal::client
