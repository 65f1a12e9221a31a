// A request as the engine takes it: validated, tokenised, every default filled in.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "engine/backend/attention.h"
#include "engine/backend/sampling.h"

namespace tidal {

struct StoppingCriteria {
  int32_t max_new_tokens = 0;  // at least 1
  std::vector<std::string> stop_strings;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop_in_output = false;
};

struct AttentionOptions {
  AttentionMode mode = AttentionMode::kFull;
  Selection selection;  // for kTidal and kQuest
  // In these modes every so manieth generated token is decoded with full attention, once the K and
  // V of those since the last such token have been computed anew with it; 0 = never.
  int32_t correction_interval = 0;
};

inline constexpr int32_t kMaxChoices = 16;

struct Request {
  std::string id;  // unique among live requests
  std::vector<int32_t> prompt_token_ids;
  SamplingParams sampling;
  StoppingCriteria stopping;
  AttentionOptions attention;
  // Independent outputs of the one prompt, 1..kMaxChoices. Choice i draws as a request with the
  // seed sampling.seed + i would, modulo 2^64.
  int32_t num_choices = 1;
  bool skip_special_tokens = true;
  std::string cache_salt;   // prompts share cached blocks only where their salts are equal
  int32_t priority = 0;     // higher leaves the queue first
  absl::Time arrival_time;  // before tokenising, by the engine's clock
  absl::Time deadline = absl::InfiniteFuture();
};

}  // namespace tidal
