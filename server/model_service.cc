#include "server/model_service.h"

#include "server/brief_call.h"
#include "server/proto_conversion.h"
#include "server/version.h"
#include "server/violations.h"

namespace tidal::server {
namespace {

absl::Status FillModelInfo(const absl::StatusOr<ActiveCall>& call,
                           const api::GetModelInfoRequest& request,
                           api::GetModelInfoResponse* response) {
  if (!call.ok()) return call.status();
  Violations violations;
  violations.AddUnknownFields(request);
  if (!violations.empty()) return violations.ToStatus();
  *response = call->state().model_info;
  return absl::OkStatus();
}

}  // namespace

api::GetModelInfoResponse DescribeModel(const std::string& name, const ServingModel& model,
                                        const EngineOptions& options, int32_t max_request_tokens,
                                        const AttentionOptions& default_attention) {
  const ModelShape& shape = model.config.shape;
  api::GetModelInfoResponse info;
  info.set_model_name(name);
  info.set_architecture(model.config.architecture);
  info.set_server_version(kServerVersion);
  info.set_device(model.backend->description());
  info.set_num_layers(shape.num_layers);
  info.set_hidden_size(shape.hidden_size);
  info.set_num_query_heads(shape.num_query_heads);
  info.set_num_kv_heads(shape.num_kv_heads);
  info.set_head_dim(shape.head_dim);
  info.set_vocab_size(shape.vocab_size);
  for (const int32_t id : model.config.bos_token_ids) info.add_bos_token_ids(id);
  for (const int32_t id : model.config.eos_token_ids) info.add_eos_token_ids(id);
  *info.mutable_default_attention() = ToProto(default_attention, model.plan);
  api::GetModelInfoResponse::Limits* limits = info.mutable_limits();
  limits->set_max_model_len(max_request_tokens);
  limits->set_max_batch_tokens(options.max_batch_tokens);
  limits->set_max_running_requests(options.max_running_requests);
  limits->set_max_queued_requests(options.max_queued_requests);
  limits->set_max_queued_tokens(options.max_queued_tokens);
  limits->set_kv_cache_tokens(int64_t{options.num_blocks} * kBlockSize);
  limits->set_max_token_budget(kMaxTokenBudget);
  return info;
}

grpc::ServerUnaryReactor* ModelServiceImpl::GetModelInfo(grpc::CallbackServerContext* context,
                                                         const api::GetModelInfoRequest* request,
                                                         api::GetModelInfoResponse* response) {
  BriefCall call(*admission_, context, "GetModelInfo");
  return call.Finish(FillModelInfo(call.admission(), *request, response));
}

}  // namespace tidal::server
