#include "server/generate_unary_reactor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/proto_conversion.h"
#include "server/status_mapping.h"

namespace tidal::server {

GenerateUnaryReactor* GenerateUnaryReactor::Start(CallInfo info, const GenerateOptions& options,
                                                  absl::StatusOr<ActiveCall> admission,
                                                  const api::GenerateRequest& request,
                                                  api::GenerateResponse* response) {
  const std::shared_ptr<GenerateUnaryReactor> reactor(
      new GenerateUnaryReactor(std::move(info), options, std::move(admission), response));
  reactor->self_ = reactor;
  if (const absl::Status status = reactor->call_.Submit(request, reactor); !status.ok()) {
    reactor->OnFailed(status);
  }
  return reactor.get();  // OnDone, which lets go of it, comes after gRPC has got it
}

GenerateUnaryReactor::GenerateUnaryReactor(CallInfo info, const GenerateOptions& options,
                                           absl::StatusOr<ActiveCall> admission,
                                           api::GenerateResponse* response)
    : call_(std::move(info), options, std::move(admission)), response_(response) {}

void GenerateUnaryReactor::OnCancel() { call_.CancelByClient(); }

void GenerateUnaryReactor::OnDone() {
  call_.LogEnd();
  // Destroyed here, or by the engine thread on its way out of the last of its calls.
  const std::shared_ptr<GenerateUnaryReactor> self = std::move(self_);
}

void GenerateUnaryReactor::OnStarted(const GenerationStarted& /*started*/) {
  response_->set_request_id(call_.request_id());
  *response_->mutable_attention() = call_.effective_attention();
  response_->set_seed(call_.seed());
  for (int32_t index = 0; index < call_.num_choices(); ++index) {
    response_->add_choices()->set_index(index);
  }
}

void GenerateUnaryReactor::OnProgress(int32_t /*num_prefilled_tokens*/,
                                      int32_t /*num_total_tokens*/) {}

void GenerateUnaryReactor::OnDelta(GenerationDelta delta) {
  call_.NoteDelta(delta);
  const bool with_logprobs = call_.returns_logprobs();
  num_response_bytes_ += WireBytes(delta, with_logprobs);
  if (num_response_bytes_ > call_.options().max_unary_response_bytes) {
    if (too_long_.ok()) {
      too_long_ = absl::ResourceExhaustedError(
          absl::StrCat("the response has more than ", call_.options().max_unary_response_bytes,
                       " bytes; use GenerateStream"));
      call_.Cancel(too_long_);
    }
    return;
  }
  AppendDelta(delta, with_logprobs, call_.state().tokenizer,
              response_->mutable_choices(delta.choice_index));
}

void GenerateUnaryReactor::OnFinished(const GenerationFinished& finished) {
  if (!too_long_.ok()) return OnFailed(too_long_);  // its cancellation has come too late
  call_.NoteFinished(finished);
  *response_->mutable_usage() = ToProto(finished.usage);
  *response_->mutable_timings() = ToProto(finished.timings);
  Finish(grpc::Status::OK);
}

void GenerateUnaryReactor::OnFailed(const absl::Status& status) {
  call_.NoteFailed(status);
  Finish(ToGrpcStatus(status));
}

}  // namespace tidal::server
