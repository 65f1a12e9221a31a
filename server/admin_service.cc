#include "server/admin_service.h"

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "server/logging.h"
#include "server/status_mapping.h"
#include "server/violations.h"

namespace tidal::server {
namespace {

namespace api = ::tidal::inference::v1;

grpc::ServerUnaryReactor* FinishNow(grpc::CallbackServerContext* context,
                                    const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

absl::StatusOr<std::string> AdminServiceImpl::Check(
    const grpc::CallbackServerContext& context, const google::protobuf::Message& request) const {
  absl::StatusOr<std::string> caller = access_->Identify(context);
  if (!caller.ok()) {
    metrics_->CountUnauthenticated();
    return caller;
  }
  Violations violations;
  violations.AddUnknownFields(request);
  TIDAL_RETURN_IF_ERROR(violations.ToStatus());
  return caller;
}

grpc::ServerUnaryReactor* AdminServiceImpl::AbortRequest(grpc::CallbackServerContext* context,
                                                         const api::AbortRequestRequest* request,
                                                         api::AbortRequestResponse* /*response*/) {
  const absl::StatusOr<std::string> caller = Check(*context, *request);
  return FinishNow(context, caller.ok() ? Abort(*caller, request->request_id()) : caller.status());
}

absl::Status AdminServiceImpl::Abort(const std::string& operator_name,
                                     const std::string& request_id) const {
  if (request_id.empty()) return absl::InvalidArgumentError("request_id: is missing");
  const ServingState* state = lifecycle_->state();
  absl::Status status =
      state == nullptr
          ? absl::NotFoundError(absl::StrCat("request_id: '", request_id, "' is not running"))
          : state->engine->CancelById(request_id,
                                      absl::CancelledError("an operator has aborted the request"));
  Log(LogLevel::info, "abort asked for",
      {{"client", operator_name}, {"request_id", request_id}, {"code", CodeName(status)}});
  return status;
}

grpc::ServerUnaryReactor* AdminServiceImpl::Drain(grpc::CallbackServerContext* context,
                                                  const api::DrainRequest* request,
                                                  api::DrainResponse* response) {
  const absl::StatusOr<std::string> caller = Check(*context, *request);
  return FinishNow(context, caller.ok() ? BeginDrain(*caller, response) : caller.status());
}

absl::Status AdminServiceImpl::BeginDrain(const std::string& operator_name,
                                          api::DrainResponse* response) const {
  if (lifecycle_->phase() == Phase::kLoading) {
    return absl::UnavailableError("the server is loading its model");
  }
  Log(LogLevel::info, "drain asked for", {{"client", operator_name}});
  response->set_active_calls(lifecycle_->num_active_calls());
  lifecycle_->RequestDrain();
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* AdminServiceImpl::FlushPrefixCache(
    grpc::CallbackServerContext* context, const api::FlushPrefixCacheRequest* request,
    api::FlushPrefixCacheResponse* response) {
  const absl::StatusOr<std::string> caller = Check(*context, *request);
  return FinishNow(context, caller.ok() ? Flush(*caller, response) : caller.status());
}

absl::Status AdminServiceImpl::Flush(const std::string& operator_name,
                                     api::FlushPrefixCacheResponse* response) {
  const ServingState* state = lifecycle_->state();
  if (state == nullptr) return absl::UnavailableError("the server is loading its model");
  const std::unique_lock<std::mutex> lock(flush_mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return absl::UnavailableError("another flush waits for its step");
  TIDAL_ASSIGN_OR_RETURN(const int32_t num_dropped_blocks, state->engine->FlushPrefixCache());
  response->set_dropped_blocks(num_dropped_blocks);
  Log(LogLevel::info, "prefix cache flushed",
      {{"client", operator_name}, {"dropped_blocks", int64_t{num_dropped_blocks}}});
  return absl::OkStatus();
}

}  // namespace tidal::server
