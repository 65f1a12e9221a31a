// A stream of generation that needs no thread while it runs; see InferenceClient, which starts it.
// Cancel is thread-safe, also after the stream's end.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "tidal/inference/v1/inference.grpc.pb.h"

namespace tidal::client {

class StreamCall final : private grpc::ClientReadReactor<inference::v1::GenerateStreamResponse> {
 public:
  using EventCallback = std::function<void(const inference::v1::GenerateStreamResponse&)>;
  using DoneCallback = std::function<void(const absl::Status&)>;

  StreamCall(inference::v1::GenerateStreamRequest request, EventCallback on_event,
             DoneCallback on_done);

  // Ends the stream with CANCELLED, unless it is at its end already.
  void Cancel() { context_.TryCancel(); }

 private:
  friend class InferenceClient;

  // For deadline and metadata, before Start.
  grpc::ClientContext* context() { return &context_; }
  // `self` is this call, and is kept until the stream has ended.
  void Start(inference::v1::InferenceService::Stub& stub, std::shared_ptr<StreamCall> self);

  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  grpc::ClientContext context_;
  inference::v1::GenerateStreamRequest request_;
  inference::v1::GenerateStreamResponse event_;
  EventCallback on_event_;
  DoneCallback on_done_;
  bool finished_ = false;
  std::shared_ptr<StreamCall> self_;
};

}  // namespace tidal::client
