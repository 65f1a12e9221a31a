// One unary Generate call: the same events as a stream's, gathered into one response. Lives until
// gRPC and the engine have both let go of it. The engine thread alone writes the response, and
// finishes the call with its last event; gRPC's threads only cancel.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/generation_observer.h"
#include "server/generate_call.h"
#include "tidal/inference/v1/inference.pb.h"

namespace tidal::server {

class GenerateUnaryReactor : public grpc::ServerUnaryReactor, public GenerationObserver {
 public:
  // The reactor of a new call, for gRPC's handler to return; it deletes itself. gRPC keeps
  // `response` until the call is done.
  static GenerateUnaryReactor* Start(CallInfo info, const GenerateOptions& options,
                                     absl::StatusOr<ActiveCall> admission,
                                     const inference::v1::GenerateRequest& request,
                                     inference::v1::GenerateResponse* response);

  // From gRPC.
  void OnCancel() override;
  void OnDone() override;

  // From the engine.
  void OnStarted(const GenerationStarted& started) override;
  void OnProgress(int32_t num_prefilled_tokens, int32_t num_total_tokens) override;
  void OnDelta(GenerationDelta delta) override;
  void OnFinished(const GenerationFinished& finished) override;
  void OnFailed(const absl::Status& status) override;

 private:
  GenerateUnaryReactor(CallInfo info, const GenerateOptions& options,
                       absl::StatusOr<ActiveCall> admission,
                       inference::v1::GenerateResponse* response);

  GenerateCall call_;
  inference::v1::GenerateResponse* const response_;
  int64_t num_response_bytes_ = 0;
  absl::Status too_long_;                       // not OK once the response exceeds its limit
  std::shared_ptr<GenerateUnaryReactor> self_;  // until OnDone
};

}  // namespace tidal::server
