// What the engine holds at one moment, for people who look for the reason of a stall: every request
// with its choices, and where each is. No prompt and no output.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/engine_observer.h"

namespace tidal {

struct SequenceDebugState {
  std::string request_id;
  int32_t choice_index = 0;
  RequestStage stage = RequestStage::kQueued;
  int32_t priority = 0;
  absl::Duration age;                                     // since the request's arrival
  absl::Duration time_left = absl::InfiniteDuration();    // until its deadline
  absl::Duration since_token = absl::InfiniteDuration();  // since its last token; infinite = none
  int32_t num_prompt_tokens = 0;
  int32_t num_computed_tokens = 0;
  int32_t num_unread_tokens = 0;  // drawn by steps in flight
  int32_t num_generated_tokens = 0;
  int32_t max_new_tokens = 0;
  int32_t num_blocks = 0;    // held, shared ones included
  int32_t sampler_slot = 0;  // -1 while waiting
  int32_t num_preemptions = 0;
};

struct EngineDebugState {
  EngineLoad load;
  int32_t num_steps_in_flight = 0;
  double fastest_prefill_rate = 0.0;  // prompt tokens a second; 0 before the first full step
  std::vector<SequenceDebugState> sequences;  // by arrival; of one request, by choice
};

// The engine fails it, with what ended it, where it cannot answer any more. Called once, on the
// engine thread or the asking one, and returns at once.
using DebugStateReceiver = std::function<void(const absl::StatusOr<EngineDebugState>& state)>;

}  // namespace tidal
