#include "tests/client/fake_server.h"

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_builder.h>

#include "google/rpc/status.pb.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;

class ScriptedStream final : public grpc::ServerWriteReactor<v1::GenerateStreamResponse> {
 public:
  explicit ScriptedStream(FakeInferenceService& script) : script_(script) { WriteNext(); }

  void OnWriteDone(bool ok) override {
    if (ok) WriteNext();
    // Else the client is gone, and OnCancel finishes the call.
  }
  void OnCancel() override {
    script_.stream_cancelled.Notify();
    Finish(grpc::Status::CANCELLED);
  }
  void OnDone() override { delete this; }

 private:
  void WriteNext() {
    if (next_ < script_.events.size()) {
      StartWrite(&script_.events[next_++]);
    } else if (!script_.hold_stream_open) {
      Finish(script_.status);
    }
  }

  FakeInferenceService& script_;
  std::size_t next_ = 0;
};

std::string AuthorizationOf(const grpc::CallbackServerContext& context) {
  const auto it = context.client_metadata().find("authorization");
  return it == context.client_metadata().end() ? ""
                                               : std::string(it->second.data(), it->second.size());
}

// A stream that ends at once.
class FailedStream final : public grpc::ServerWriteReactor<v1::GenerateStreamResponse> {
 public:
  explicit FailedStream(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

grpc::ServerUnaryReactor* Finished(grpc::CallbackServerContext* context,
                                   const grpc::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* FakeInferenceService::Generate(grpc::CallbackServerContext* context,
                                                         const v1::GenerateRequest* request,
                                                         v1::GenerateResponse* response) {
  generate_request = *request;
  authorization = AuthorizationOf(*context);
  *response = generate_response;
  return Finished(context, status);
}

grpc::ServerWriteReactor<v1::GenerateStreamResponse>* FakeInferenceService::GenerateStream(
    grpc::CallbackServerContext* context, const v1::GenerateStreamRequest* request) {
  stream_request = *request;
  authorization = AuthorizationOf(*context);
  if (num_unavailable > 0) {
    --num_unavailable;
    return new FailedStream(grpc::Status(grpc::StatusCode::UNAVAILABLE, "loading"));
  }
  return new ScriptedStream(*this);
}

grpc::ServerUnaryReactor* FakeInferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                         const v1::TokenizeRequest* request,
                                                         v1::TokenizeResponse* response) {
  tokenize_request = *request;
  *response = tokenize_response;
  return Finished(context, status);
}

grpc::ServerUnaryReactor* FakeInferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                           const v1::DetokenizeRequest* request,
                                                           v1::DetokenizeResponse* response) {
  detokenize_request = *request;
  *response = detokenize_response;
  return Finished(context, status);
}

grpc::ServerUnaryReactor* FakeModelService::GetModelInfo(grpc::CallbackServerContext* context,
                                                         const v1::GetModelInfoRequest* /*request*/,
                                                         v1::GetModelInfoResponse* response) {
  *response = response_script;
  return Finished(context, grpc::Status::OK);
}

FakeServer::FakeServer() {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  builder.RegisterService(&inference_);
  builder.RegisterService(&model_);
  server_ = builder.BuildAndStart();
  server_->GetHealthCheckService()->SetServingStatus("draining", false);
}

FakeServer::~FakeServer() { server_->Shutdown(); }

std::shared_ptr<grpc::Channel> FakeServer::MakeChannel() {
  return server_->InProcessChannel(grpc::ChannelArguments());
}

grpc::Status StatusWithDetails(grpc::StatusCode code, const std::string& message,
                               const google::protobuf::Message& details) {
  google::rpc::Status status;
  status.set_code(code);
  status.set_message(message);
  status.add_details()->PackFrom(details);
  return {code, message, status.SerializeAsString()};
}

v1::GenerateStreamResponse StartedEvent() {
  v1::GenerateStreamResponse event;
  auto* started = event.mutable_started();
  started->set_request_id("r-1");
  started->set_prompt_tokens(8000);
  started->set_seed(18446744073709551615U);
  started->mutable_attention()->set_mode(v1::ATTENTION_MODE_TIDAL);
  started->mutable_attention()->set_token_budget(256);
  started->mutable_attention()->set_selection_scope(v1::SELECTION_SCOPE_KV_HEAD);
  started->mutable_attention()->add_full_layers(0);
  started->mutable_attention()->add_full_layers(1);
  started->mutable_attention()->add_selection_layers(2);
  return event;
}

v1::GenerateStreamResponse ProgressEvent(int prefilled_tokens, int total_tokens) {
  v1::GenerateStreamResponse event;
  event.mutable_progress()->set_prefilled_tokens(prefilled_tokens);
  event.mutable_progress()->set_total_tokens(total_tokens);
  return event;
}

v1::GenerateStreamResponse DeltaEvent(const std::string& text, int token_id) {
  v1::GenerateStreamResponse event;
  event.mutable_delta()->set_text(text);
  event.mutable_delta()->add_token_ids(token_id);
  return event;
}

v1::GenerateStreamResponse FinishedEvent() {
  v1::GenerateStreamResponse event;
  auto* finished = event.mutable_finished();
  finished->set_finish_reason(v1::FINISH_REASON_STOP_STRING);
  finished->mutable_matched_stop()->set_text("\n");
  auto* usage = finished->mutable_usage();
  usage->set_prompt_tokens(8000);
  usage->set_generated_tokens(5);
  usage->set_attended_tokens(1000);
  usage->set_available_tokens(4000);
  finished->mutable_timings()->set_decode_seconds(0.5);
  finished->mutable_timings()->set_time_to_first_token_seconds(1.25);
  return event;
}

}  // namespace tidal::client
