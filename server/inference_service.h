// tidal.inference.v1.InferenceService. Thread-safe, as gRPC calls it on threads of its own.
#pragma once

#include <grpcpp/support/server_callback.h>

#include "server/call_admission.h"
#include "server/generate_call.h"
#include "tidal/inference/v1/inference.grpc.pb.h"

namespace tidal::server {

class InferenceServiceImpl : public inference::v1::InferenceService::CallbackService {
 public:
  // `admission` must outlive the service and its calls.
  InferenceServiceImpl(const CallAdmission* admission, GenerateOptions options)
      : admission_(admission), options_(options) {}

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

 private:
  const CallAdmission* const admission_;
  const GenerateOptions options_;
};

}  // namespace tidal::server
