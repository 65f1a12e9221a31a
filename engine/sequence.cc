#include "engine/sequence.h"

namespace tidal {

RequestStage Sequence::stage() const {
  if (sampler_slot < 0) return RequestStage::kQueued;
  return num_generated_tokens() == 0 ? RequestStage::kPrefill : RequestStage::kDecode;
}

void Generation::Account(const Sequence& sequence) {
  usage.num_prompt_tokens = sequence.num_prompt_tokens();
  if (sequence.choice_index == 0) {
    usage.num_cached_prompt_tokens = sequence.num_cached_prompt_tokens;
  }
  usage.num_generated_tokens += sequence.num_generated_tokens();
  usage.num_attended_tokens += sequence.num_attended_tokens;
  usage.num_available_tokens += sequence.num_available_tokens;
  usage.num_preemptions += sequence.num_preemptions;
}

Timings Generation::TimingsUntil(absl::Time end) const {
  const bool was_admitted = admission_time != absl::InfinitePast();
  const bool has_tokens = first_token_time != absl::InfinitePast();
  const absl::Time admission = was_admitted ? admission_time : end;
  const absl::Time first_token = has_tokens ? first_token_time : end;
  return {.queue = admission - arrival_time,
          .prefill = first_token - admission,
          .decode = end - first_token,
          .end_to_end = end - arrival_time,
          .time_to_first_token = has_tokens ? first_token - arrival_time : absl::ZeroDuration()};
}

}  // namespace tidal
