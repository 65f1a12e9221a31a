// What a request's owner hears of its generation. The engine calls these on its own thread, in the
// order started, progress and deltas, then exactly one of finished and failed, after which it lets
// go of the observer. Implementations return at once: a slow one would hold up every other request.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/backend/sampling.h"

namespace tidal {

// Of a request: tokens generated, positions and preemptions are those of all its choices together.
struct Usage {
  int32_t num_prompt_tokens = 0;
  int32_t num_cached_prompt_tokens = 0;  // of these, found in the prefix cache
  int32_t num_generated_tokens = 0;
  // Positions attended by decode steps, and those there were, summed over steps and layers.
  int64_t num_attended_tokens = 0;
  int64_t num_available_tokens = 0;
  int32_t num_preemptions = 0;
};

// queue + prefill + decode = end_to_end.
struct Timings {
  absl::Duration queue;
  absl::Duration prefill;  // from leaving the queue to the first token
  absl::Duration decode;
  absl::Duration end_to_end;
  absl::Duration time_to_first_token;  // from arrival; zero where there is none
};

enum class FinishReason : uint8_t { kEndOfSequence, kStopToken, kStopString, kLength };

struct GenerationStarted {
  int32_t num_prompt_tokens = 0;
  int32_t num_cached_prompt_tokens = 0;
};

// How a choice ended.
struct ChoiceEnding {
  FinishReason reason = FinishReason::kLength;
  std::optional<std::string> matched_stop_string = std::nullopt;
  std::optional<int32_t> matched_token_id = std::nullopt;  // a stop or end-of-sequence token
};

struct GenerationDelta {
  int32_t choice_index = 0;
  std::string text;  // whole UTF-8; may lag behind the tokens
  std::vector<SampledToken> tokens;
  std::optional<ChoiceEnding> ending = std::nullopt;  // in the choice's last delta
};

// Every choice has ended.
struct GenerationFinished {
  ChoiceEnding ending;  // of choice 0
  Usage usage;
  Timings timings;
};

class GenerationObserver {
 public:
  virtual ~GenerationObserver() = default;

  virtual void OnStarted(const GenerationStarted& started) = 0;
  // Of the prompt's prefill, which the choices share.
  virtual void OnProgress(int32_t num_prefilled_tokens, int32_t num_total_tokens) = 0;
  virtual void OnDelta(GenerationDelta delta) = 0;
  virtual void OnFinished(const GenerationFinished& finished) = 0;
  // Cancelled, past its deadline, shut down, or struck by a fault.
  virtual void OnFailed(const absl::Status& status) = 0;
};

}  // namespace tidal
