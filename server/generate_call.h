// What the unary and the streaming Generate share: from the message to the engine, cancelling, and
// the line in the log. One for each call; the reactors own it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "engine/generation_observer.h"
#include "server/client_limits.h"
#include "server/lifecycle.h"
#include "server/logging.h"
#include "server/request_validation.h"
#include "server/stream_watch.h"
#include "server/trace_context.h"
#include "tidal/inference/v1/inference.pb.h"

namespace tidal::server {

// What is known of a call besides its message.
struct CallInfo {
  const char* method = "";
  std::string peer;
  std::chrono::system_clock::time_point deadline = std::chrono::system_clock::time_point::max();
  std::string client = {};  // who calls, see AccessControl; empty where nobody knows
  std::optional<ClientLimits::Lease> lease = std::nullopt;
  // Ends the call whether its client listens or not; valid until the call is done. May be empty.
  std::function<void()> abort = {};
  std::optional<TraceContext> trace = std::nullopt;
};

// What the log says of every call that has ended, and never what was in it.
LogFields FieldsOf(const CallInfo& call, const absl::Status& status);

struct GenerateOptions {
  int64_t max_pending_response_bytes = 4 << 20;  // of a stream's slow reader
  int64_t max_unary_response_bytes = 64 << 20;
  bool log_prompts = false;
  // Null: who reads nothing is waited for. Must outlive the calls.
  StreamWatch* stream_watch = nullptr;
};

class GenerateCall {
 public:
  GenerateCall(CallInfo info, const GenerateOptions& options, absl::StatusOr<ActiveCall> admission);

  // Validates and queues the request. Where that fails, `observer` hears nothing of it.
  // To be called once, before anything but Cancel.
  template <typename Message>
  absl::Status Submit(const Message& message, std::shared_ptr<GenerationObserver> observer) {
    if (!admission_.ok()) return admission_.status();
    absl::StatusOr<Request> request = ValidateGenerate(message, state().validation, NewIdentity());
    if (!request.ok()) return request.status();
    if (options_.log_prompts && message.has_text()) prompt_text_ = message.text();
    return SubmitRequest(*std::move(request), std::move(observer));
  }

  // Ends the generation with `reason`, now or as soon as it is submitted. Any thread.
  void Cancel(absl::Status reason);
  // gRPC says that the client has gone or that its deadline has passed. Any thread.
  void CancelByClient();

  // Ends the call at gRPC. Until gRPC is done with it.
  void Abort() const {
    if (info_.abort) info_.abort();
  }

  // What the log shall say in the end. Any thread.
  void NoteDelta(const GenerationDelta& delta);
  void NoteFinished(const GenerationFinished& finished);
  void NoteFailed(const absl::Status& status);

  // Once, when nothing happens any more.
  void LogEnd() const;

  // Valid once Submit has handed the request to the engine, that is, in every observer's method.
  const ServingState& state() const { return admission_->state(); }
  const std::string& request_id() const { return request_id_; }
  uint64_t seed() const { return seed_; }
  bool returns_logprobs() const { return returns_logprobs_; }
  int32_t num_choices() const { return num_choices_; }
  inference::v1::EffectiveAttention effective_attention() const;

  const GenerateOptions& options() const { return options_; }

 private:
  static RequestIdentity NewIdentity();
  absl::Status SubmitRequest(Request request, std::shared_ptr<GenerationObserver> observer);
  absl::Time EngineDeadline() const;
  void Charge(int64_t num_tokens) const;

  const CallInfo info_;
  const GenerateOptions options_;
  const absl::StatusOr<ActiveCall> admission_;
  const absl::Time arrival_time_;  // by the engine's clock; meaningless where not admitted

  // Written before the engine knows the request.
  std::string request_id_;
  std::string prompt_text_;  // only with log_prompts
  uint64_t seed_ = 0;
  bool returns_logprobs_ = false;
  int32_t num_choices_ = 1;
  int32_t num_prompt_tokens_ = 0;
  AttentionOptions attention_;

  mutable std::mutex mutex_;
  std::optional<RequestTicket> ticket_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> early_cancellation_ ABSL_GUARDED_BY(mutex_);
  // For the log.
  int32_t num_generated_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<GenerationFinished> finished_ ABSL_GUARDED_BY(mutex_);
  absl::Status final_status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tidal::server
