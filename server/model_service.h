// tidal.inference.v1.ModelService. Thread-safe, as gRPC calls it on threads of its own.
#pragma once

#include <string>

#include "engine/engine.h"
#include "engine/model_loader.h"
#include "server/call_admission.h"
#include "tidal/inference/v1/model.grpc.pb.h"

namespace tidal::server {

// What GetModelInfo says of a loaded model.
inference::v1::GetModelInfoResponse DescribeModel(const std::string& name,
                                                  const ServingModel& model,
                                                  const EngineOptions& options,
                                                  int32_t max_request_tokens,
                                                  const AttentionOptions& default_attention);

class ModelServiceImpl : public inference::v1::ModelService::CallbackService {
 public:
  // `admission` must outlive the service and its calls.
  explicit ModelServiceImpl(const CallAdmission* admission) : admission_(admission) {}

  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const inference::v1::GetModelInfoRequest* request,
                                         inference::v1::GetModelInfoResponse* response) override;

 private:
  const CallAdmission* const admission_;
};

}  // namespace tidal::server
