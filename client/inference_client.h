// A client of a Tidal server: one blocking method for each RPC, and streams without a thread of
// their own; absl::Status for every error, with the server's details as payloads (see
// client/rpc_status.h). Thread-safe: calls may run at once on several threads; they share one
// connection.
#pragma once

#include <grpcpp/channel.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/call_canceller.h"
#include "client/stream_call.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tidal/inference/v1/inference.grpc.pb.h"
#include "tidal/inference/v1/model.grpc.pb.h"

namespace tidal::client {

// Contents of PEM files. An empty one is not used: without `ca_certificates` the system's are, and
// without `certificate_chain` and `private_key` the client does not identify itself.
struct TlsOptions {
  std::string ca_certificates;
  std::string certificate_chain;
  std::string private_key;
};

struct ChannelOptions {
  // Applies to each message in either direction. A prompt of 128K tokens takes about 1 MiB.
  int32_t max_message_size_bytes = 64 << 20;
  // Pings find a dead connection during a long prefill. Servers refuse intervals below 10 s.
  absl::Duration keepalive_interval = absl::Seconds(30);
  absl::Duration keepalive_timeout = absl::Seconds(20);
  // Unencrypted where it is absent.
  std::optional<TlsOptions> tls;
  // Channels to one target share a connection unless they ask for their own.
  bool has_own_connection = false;
};

// `target` is a gRPC name: "host:port", "dns:///host:port", "unix:path".
// Connects at the first call, which fails with UNAVAILABLE where nobody answers.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target,
                                           const ChannelOptions& options = {});

struct CallOptions {
  // The call ends with DEADLINE_EXCEEDED once it has passed; the server stops working on it too.
  absl::Time deadline = absl::InfiniteFuture();
  // Where set, cancels the call from another thread. Not owned.
  CallCanceller* canceller = nullptr;
};

class InferenceClient {
 public:
  // With each call goes the metadata "authorization: Bearer <bearer_token>", unless it is empty.
  explicit InferenceClient(const std::shared_ptr<grpc::Channel>& channel,
                           std::string bearer_token = "");

  // Waits until the whole text is generated.
  absl::StatusOr<inference::v1::GenerateResponse> Generate(
      const inference::v1::GenerateRequest& request, const CallOptions& options = {});

  // Calls `on_event` on this thread for each event as it comes. Where it returns false the call is
  // cancelled, and the result is CANCELLED. OK means that `finished` was the last event; a stream
  // that ends without one is INTERNAL.
  absl::Status GenerateStream(
      const inference::v1::GenerateStreamRequest& request,
      absl::FunctionRef<bool(const inference::v1::GenerateStreamResponse&)> on_event,
      const CallOptions& options = {});

  // Begins a stream and returns at once. The callbacks are made on gRPC's threads, which all
  // streams share, never two at once for one stream: they must not block. `on_done` is the last
  // one, with the status that GenerateStream would return; the callbacks may not destroy this
  // client.
  std::shared_ptr<StreamCall> StartGenerateStream(inference::v1::GenerateStreamRequest request,
                                                  absl::Time deadline,
                                                  StreamCall::EventCallback on_event,
                                                  StreamCall::DoneCallback on_done);

  absl::StatusOr<inference::v1::TokenizeResponse> Tokenize(
      const inference::v1::TokenizeRequest& request, const CallOptions& options = {});

  absl::StatusOr<inference::v1::DetokenizeResponse> Detokenize(
      const inference::v1::DetokenizeRequest& request, const CallOptions& options = {});

  absl::StatusOr<inference::v1::GetModelInfoResponse> GetModelInfo(const CallOptions& options = {});

  // Status of a service by its full name, "" for the whole server. NOT_FOUND where the server does
  // not know it.
  absl::StatusOr<grpc::health::v1::HealthCheckResponse::ServingStatus> CheckHealth(
      absl::string_view service, const CallOptions& options = {});

 private:
  class Call;

  template <typename Response, typename Stub, typename Request>
  absl::StatusOr<Response> CallUnary(Stub& stub,
                                     grpc::Status (Stub::*method)(grpc::ClientContext*,
                                                                  const Request&, Response*),
                                     const Request& request, const CallOptions& options);

  std::string bearer_token_;
  std::unique_ptr<inference::v1::InferenceService::Stub> inference_;
  std::unique_ptr<inference::v1::ModelService::Stub> model_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

}  // namespace tidal::client
