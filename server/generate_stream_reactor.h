// One GenerateStream call. The engine thread merges what comes into at most one pending event of
// each kind, one delta for each choice, and starts a write where none is in flight; gRPC's threads
// start the next one. So a slow reader costs its own memory only, and that has a limit.
//
// Lives until gRPC and the engine have both let go of it. Thread-safe, as both may call at once.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/generation_observer.h"
#include "server/generate_call.h"
#include "server/stream_watch.h"
#include "tidal/inference/v1/inference.pb.h"

namespace tidal::server {

class GenerateStreamReactor
    : public grpc::ServerWriteReactor<inference::v1::GenerateStreamResponse>,
      public GenerationObserver,
      private StreamWatch::Stream {
 public:
  // The reactor of a new call, for gRPC's handler to return; it deletes itself.
  static GenerateStreamReactor* Start(CallInfo info, const GenerateOptions& options,
                                      absl::StatusOr<ActiveCall> admission,
                                      const inference::v1::GenerateStreamRequest& request);

  // From gRPC.
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  // From the engine.
  void OnStarted(const GenerationStarted& started) override;
  void OnProgress(int32_t num_prefilled_tokens, int32_t num_total_tokens) override;
  void OnDelta(GenerationDelta delta) override;
  void OnFinished(const GenerationFinished& finished) override;
  void OnFailed(const absl::Status& status) override;

 private:
  using Response = inference::v1::GenerateStreamResponse;

  // What came for one choice since its last delta was written.
  struct PendingDelta {
    bool is_pending = false;
    Response::Delta message;
    int64_t num_bytes = 0;
  };

  // What to ask of gRPC once the mutex is free.
  enum class Action : uint8_t { kNone, kWrite, kWriteAndFinish, kFinish };

  GenerateStreamReactor(CallInfo info, const GenerateOptions& options,
                        absl::StatusOr<ActiveCall> admission);

  // From the watch.
  void GiveUpIfStalled(absl::Time now, absl::Duration max_stall) override;

  // The next event goes into response_, in the order started, progress, delta, finished.
  Action TakeNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Moves the pending delta of the choice whose turn it is to response_; false where there is none.
  bool TakeDelta() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Perform(Action action);
  void Discard(absl::Status reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  GenerateCall call_;
  std::shared_ptr<GenerateStreamReactor> self_;  // until OnDone

  std::mutex mutex_;
  std::optional<Response::Started> pending_started_ ABSL_GUARDED_BY(mutex_);
  std::optional<Response::Progress> pending_progress_ ABSL_GUARDED_BY(mutex_);
  std::vector<PendingDelta> pending_deltas_ ABSL_GUARDED_BY(mutex_);  // [num_choices]
  size_t last_choice_ ABSL_GUARDED_BY(mutex_) = 0;                    // written last
  int64_t num_pending_bytes_ ABSL_GUARDED_BY(mutex_) = 0;             // of all choices
  std::optional<Response::Finished> pending_finished_ ABSL_GUARDED_BY(mutex_);
  // Set once the engine, or the lack of a request in it, has ended the call.
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);
  // Set once nobody reads the output any more: why, and how the call shall end.
  std::optional<absl::Status> discard_reason_ ABSL_GUARDED_BY(mutex_);
  bool is_busy_ ABSL_GUARDED_BY(mutex_) = false;  // a write is in flight, or all is finished
  absl::Time busy_since_ ABSL_GUARDED_BY(mutex_);
  bool is_given_up_ ABSL_GUARDED_BY(mutex_) = false;

  Response response_;  // being written, or free where nothing is in flight
};

}  // namespace tidal::server
