#include "server/inference_service.h"

#include <string>
#include <utility>
#include <vector>

#include "engine/backend/status_macros.h"
#include "server/brief_call.h"
#include "server/generate_stream_reactor.h"
#include "server/generate_unary_reactor.h"
#include "server/request_validation.h"

namespace tidal::server {
namespace {

namespace api = ::tidal::inference::v1;

absl::Status TokenizeText(const api::TokenizeRequest& request, const ServingState& state,
                          api::TokenizeResponse* response) {
  TIDAL_RETURN_IF_ERROR(ValidateTokenize(request, state.validation));
  EncodeOptions options;
  if (request.has_add_special_tokens()) options.add_special_tokens = request.add_special_tokens();
  TIDAL_ASSIGN_OR_RETURN(const std::vector<int32_t> token_ids,
                         state.tokenizer->Encode(request.text(), options));
  response->mutable_token_ids()->Add(token_ids.begin(), token_ids.end());
  for (const int32_t token_id : token_ids) {
    response->add_tokens(std::string(state.tokenizer->TokenBytes(token_id)));
  }
  return absl::OkStatus();
}

absl::Status DetokenizeIds(const api::DetokenizeRequest& request, const ServingState& state,
                           api::DetokenizeResponse* response) {
  TIDAL_RETURN_IF_ERROR(ValidateDetokenize(request, state.validation));
  const bool skip_special_tokens =
      !request.has_skip_special_tokens() || request.skip_special_tokens();
  TIDAL_ASSIGN_OR_RETURN(*response->mutable_text(),
                         state.tokenizer->Decode(request.token_ids(), skip_special_tokens));
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* InferenceServiceImpl::Generate(grpc::CallbackServerContext* context,
                                                         const api::GenerateRequest* request,
                                                         api::GenerateResponse* response) {
  CallInfo call = DescribeCall(context, "Generate");
  absl::StatusOr<ActiveCall> admission = admission_->AdmitGeneration(*context, &call);
  return GenerateUnaryReactor::Start(std::move(call), options_, std::move(admission), *request,
                                     response);
}

grpc::ServerWriteReactor<api::GenerateStreamResponse>* InferenceServiceImpl::GenerateStream(
    grpc::CallbackServerContext* context, const api::GenerateStreamRequest* request) {
  CallInfo call = DescribeCall(context, "GenerateStream");
  absl::StatusOr<ActiveCall> admission = admission_->AdmitGeneration(*context, &call);
  return GenerateStreamReactor::Start(std::move(call), options_, std::move(admission), *request);
}

grpc::ServerUnaryReactor* InferenceServiceImpl::Tokenize(grpc::CallbackServerContext* context,
                                                         const api::TokenizeRequest* request,
                                                         api::TokenizeResponse* response) {
  BriefCall call(*admission_, context, "Tokenize");
  return call.Finish(call.admission().ok()
                         ? TokenizeText(*request, call.admission()->state(), response)
                         : call.admission().status());
}

grpc::ServerUnaryReactor* InferenceServiceImpl::Detokenize(grpc::CallbackServerContext* context,
                                                           const api::DetokenizeRequest* request,
                                                           api::DetokenizeResponse* response) {
  BriefCall call(*admission_, context, "Detokenize");
  return call.Finish(call.admission().ok()
                         ? DetokenizeIds(*request, call.admission()->state(), response)
                         : call.admission().status());
}

}  // namespace tidal::server
