// tidal.inference.v1.InferenceService. Thread-safe, as gRPC calls it on threads of its own.
#pragma once

#include <grpcpp/support/server_callback.h>

#include "server/generate_call.h"
#include "server/lifecycle.h"
#include "server/prometheus_metrics.h"
#include "tidal/inference/v1/inference.grpc.pb.h"

namespace tidal::server {

// Admits a call, counting those that come too early or too late.
absl::StatusOr<ActiveCall> AdmitCall(Lifecycle* lifecycle, PrometheusMetrics* metrics);

class InferenceServiceImpl : public inference::v1::InferenceService::CallbackService {
 public:
  // Both must outlive the service and its calls.
  InferenceServiceImpl(Lifecycle* lifecycle, PrometheusMetrics* metrics, GenerateOptions options)
      : lifecycle_(lifecycle), metrics_(metrics), options_(options) {}

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
  Lifecycle* const lifecycle_;
  PrometheusMetrics* const metrics_;
  const GenerateOptions options_;
};

}  // namespace tidal::server
