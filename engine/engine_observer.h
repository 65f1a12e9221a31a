// What metrics and logs hear of the engine. Called on the engine thread unless said otherwise;
// implementations return at once.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/generation_observer.h"

namespace tidal {

// A consistent picture of what the engine holds.
struct EngineLoad {
  int32_t num_running_requests = 0;
  int32_t num_waiting_requests = 0;  // submitted or preempted, not running
  int64_t num_waiting_prompt_tokens = 0;
  int32_t num_used_blocks = 0;    // held by requests
  int32_t num_cached_blocks = 0;  // held by none, and found by their contents
  int32_t num_total_blocks = 0;
};

enum class StepKind : uint8_t { kPrefill, kDecode, kMixed };

struct StepReport {
  StepKind kind = StepKind::kDecode;
  absl::Duration duration;
  int32_t num_sequences = 0;
  int32_t num_prefill_tokens = 0;  // the part of it that repeats after a preemption included
  int32_t num_recomputed_tokens = 0;
  // Prompt tokens of requests that left the queue for the first time, looked up in the prefix cache
  // and found there.
  int64_t num_queried_tokens = 0;
  int64_t num_cached_tokens = 0;
  int32_t num_generated_tokens = 0;
  int64_t num_attended_tokens = 0;   // by decodes, summed over layers
  int64_t num_available_tokens = 0;  // likewise, had they all been full
  int32_t num_selections = 0;        // selections made: decodes in mode tidal x selection layers
  int32_t num_corrections = 0;       // decodes that have corrected the KV cache before
  int32_t num_corrected_tokens = 0;  // whose K and V these have written anew
};

enum class RequestStage : uint8_t { kQueued, kPrefill, kDecode };

struct RequestReport {
  std::string id;
  absl::Status status;                                 // OK where it finished
  FinishReason finish_reason = FinishReason::kLength;  // valid where status is OK
  RequestStage stage = RequestStage::kQueued;          // where it ended
  Usage usage;
  Timings timings;
};

enum class RejectionReason : uint8_t {
  kQueuedRequests,
  kQueuedTokens,
  kNeverFits,
  kDuplicateId,
  kDeadline,  // the first token would certainly come too late
};

class EngineObserver {
 public:
  virtual ~EngineObserver() = default;

  virtual void OnStep(const StepReport& report) = 0;
  virtual void OnFirstToken(absl::Duration time_to_first_token) = 0;
  virtual void OnInterTokenLatency(absl::Duration latency) = 0;
  virtual void OnPreemption(const std::string& request_id) = 0;
  virtual void OnRequestEnded(const RequestReport& report) = 0;
  // Any thread, under the engine's lock: it must not call the engine.
  virtual void OnRejected(RejectionReason reason) = 0;
  // Any thread, one call at a time, under the engine's lock: it must not call the engine.
  virtual void OnLoadChanged(const EngineLoad& load) = 0;
  // The engine has stopped for good; every request has been failed with INTERNAL.
  virtual void OnFault(const absl::Status& status) = 0;
};

}  // namespace tidal
