#include "client/inference_client.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "client/rpc_status.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

void AddBearerToken(const std::string& token, grpc::ClientContext& context) {
  if (!token.empty()) context.AddMetadata("authorization", absl::StrCat("Bearer ", token));
}

int ToMilliseconds(absl::Duration duration) {
  return static_cast<int>(absl::ToInt64Milliseconds(duration));
}

}  // namespace

// A client context that follows CallOptions for as long as it lives.
class InferenceClient::Call {
 public:
  Call(const CallOptions& options, const std::string& bearer_token)
      : canceller_(options.canceller) {
    AddBearerToken(bearer_token, context_);
    if (options.deadline != absl::InfiniteFuture()) {
      context_.set_deadline(absl::ToChronoTime(options.deadline));
    }
    if (canceller_ != nullptr) canceller_->Attach(&context_);
  }
  ~Call() {
    if (canceller_ != nullptr) canceller_->Detach();
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  grpc::ClientContext* context() { return &context_; }

 private:
  grpc::ClientContext context_;
  CallCanceller* canceller_;
};

template <typename Response, typename Stub, typename Request>
absl::StatusOr<Response> InferenceClient::CallUnary(
    Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
    const Request& request, const CallOptions& options) {
  Call call(options, bearer_token_);
  Response response;
  const grpc::Status status = (stub.*method)(call.context(), request, &response);
  if (!status.ok()) return FromGrpcStatus(status);
  return response;
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target,
                                           const ChannelOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(options.max_message_size_bytes);
  arguments.SetMaxSendMessageSize(options.max_message_size_bytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, ToMilliseconds(options.keepalive_interval));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, ToMilliseconds(options.keepalive_timeout));
  // Pings go on while a call waits for its first token.
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  if (options.has_own_connection) arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (options.tls.has_value()) {
    grpc::SslCredentialsOptions ssl;
    ssl.pem_root_certs = options.tls->ca_certificates;
    ssl.pem_cert_chain = options.tls->certificate_chain;
    ssl.pem_private_key = options.tls->private_key;
    credentials = grpc::SslCredentials(ssl);
  }
  return grpc::CreateCustomChannel(target, credentials, arguments);
}

InferenceClient::InferenceClient(const std::shared_ptr<grpc::Channel>& channel,
                                 std::string bearer_token)
    : bearer_token_(std::move(bearer_token)),
      inference_(v1::InferenceService::NewStub(channel)),
      model_(v1::ModelService::NewStub(channel)),
      health_(grpc::health::v1::Health::NewStub(channel)) {}

absl::StatusOr<v1::GenerateResponse> InferenceClient::Generate(const v1::GenerateRequest& request,
                                                               const CallOptions& options) {
  return CallUnary(*inference_, &v1::InferenceService::Stub::Generate, request, options);
}

absl::Status InferenceClient::GenerateStream(
    const v1::GenerateStreamRequest& request,
    absl::FunctionRef<bool(const v1::GenerateStreamResponse&)> on_event,
    const CallOptions& options) {
  Call call(options, bearer_token_);
  const auto reader = inference_->GenerateStream(call.context(), request);
  v1::GenerateStreamResponse event;
  bool finished = false;
  bool stopped = false;
  while (!stopped && reader->Read(&event)) {
    finished = event.has_finished();
    stopped = !on_event(event);
  }
  if (stopped) {
    call.context()->TryCancel();
    reader->Finish();
    return absl::CancelledError("stopped by the receiver of the events");
  }
  if (const grpc::Status status = reader->Finish(); !status.ok()) return FromGrpcStatus(status);
  if (!finished) return absl::InternalError("the stream ended without a `finished` event");
  return absl::OkStatus();
}

std::shared_ptr<StreamCall> InferenceClient::StartGenerateStream(v1::GenerateStreamRequest request,
                                                                 absl::Time deadline,
                                                                 StreamCall::EventCallback on_event,
                                                                 StreamCall::DoneCallback on_done) {
  auto call =
      std::make_shared<StreamCall>(std::move(request), std::move(on_event), std::move(on_done));
  AddBearerToken(bearer_token_, *call->context());
  if (deadline != absl::InfiniteFuture()) {
    call->context()->set_deadline(absl::ToChronoTime(deadline));
  }
  call->Start(*inference_, call);
  return call;
}

absl::StatusOr<v1::TokenizeResponse> InferenceClient::Tokenize(const v1::TokenizeRequest& request,
                                                               const CallOptions& options) {
  return CallUnary(*inference_, &v1::InferenceService::Stub::Tokenize, request, options);
}

absl::StatusOr<v1::DetokenizeResponse> InferenceClient::Detokenize(
    const v1::DetokenizeRequest& request, const CallOptions& options) {
  return CallUnary(*inference_, &v1::InferenceService::Stub::Detokenize, request, options);
}

absl::StatusOr<v1::GetModelInfoResponse> InferenceClient::GetModelInfo(const CallOptions& options) {
  return CallUnary(*model_, &v1::ModelService::Stub::GetModelInfo, v1::GetModelInfoRequest(),
                   options);
}

absl::StatusOr<HealthCheckResponse::ServingStatus> InferenceClient::CheckHealth(
    absl::string_view service, const CallOptions& options) {
  HealthCheckRequest request;
  request.set_service(std::string(service));
  const auto response =
      CallUnary(*health_, &grpc::health::v1::Health::Stub::Check, request, options);
  if (!response.ok()) return response.status();
  return response->status();
}

}  // namespace tidal::client
