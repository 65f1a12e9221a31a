#include "server/brief_call.h"

#include "engine/clock.h"
#include "server/logging.h"
#include "server/status_mapping.h"

namespace tidal::server {

CallInfo DescribeCall(grpc::CallbackServerContext* context, const char* method) {
  CallInfo info;
  info.method = method;
  info.peer = context->peer();
  info.deadline = context->deadline();
  info.abort = [context] { context->TryCancel(); };
  // One only: of several nobody could say which is meant.
  if (context->client_metadata().count(kTraceparentKey) == 1) {
    const grpc::string_ref value = context->client_metadata().find(kTraceparentKey)->second;
    info.trace = ParseTraceparent({value.data(), value.size()});
  }
  if (info.trace.has_value()) {
    context->AddTrailingMetadata(kTraceparentKey, info.trace->traceparent);
  }
  return info;
}

BriefCall::BriefCall(const CallAdmission& admission, grpc::CallbackServerContext* context,
                     const char* method)
    : context_(context),
      arrival_time_(Clock::Monotonic()->Now()),
      info_(DescribeCall(context, method)),
      admission_(admission.Admit(*context, &info_)) {}

grpc::ServerUnaryReactor* BriefCall::Finish(const absl::Status& status) {
  LogFields fields = FieldsOf(info_, status);
  fields.emplace_back("e2e_ms",
                      absl::ToDoubleMilliseconds(Clock::Monotonic()->Now() - arrival_time_));
  Log(LogLevel::info, "call finished", fields);
  grpc::ServerUnaryReactor* reactor = context_->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace tidal::server
