#include "engine/sequence.h"

namespace tidal {

RequestStage Sequence::stage() const {
  if (sampler_slot < 0) return RequestStage::kQueued;
  return num_generated_tokens() == 0 ? RequestStage::kPrefill : RequestStage::kDecode;
}

Usage Sequence::usage() const {
  return {.num_prompt_tokens = num_prompt_tokens(),
          .num_cached_prompt_tokens = num_cached_prompt_tokens,
          .num_generated_tokens = num_generated_tokens(),
          .num_attended_tokens = num_attended_tokens,
          .num_available_tokens = num_available_tokens,
          .num_preemptions = num_preemptions};
}

Timings Sequence::TimingsUntil(absl::Time end) const {
  const absl::Time arrival = request.arrival_time;
  const bool was_admitted = admission_time != absl::InfinitePast();
  const bool has_tokens = first_token_time != absl::InfinitePast();
  const absl::Time admission = was_admitted ? admission_time : end;
  const absl::Time first_token = has_tokens ? first_token_time : end;
  return {.queue = admission - arrival,
          .prefill = first_token - admission,
          .decode = end - first_token,
          .end_to_end = end - arrival,
          .time_to_first_token = has_tokens ? first_token - arrival : absl::ZeroDuration()};
}

}  // namespace tidal
