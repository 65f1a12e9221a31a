// How the next token is drawn from the logits. Both backends follow this page to the letter, so
// that the same seed gives the same token on each, whatever else is in the batch.
//
// From the float32 logits of one position, in this order:
//  1. logit_bias is added.
//  2. repetition_penalty (Keskar et al., arXiv 1909.05858): for every token of prompt or output,
//     a positive logit is divided by it, a negative one multiplied.
//  3. presence_penalty is subtracted once, frequency_penalty once for each occurrence, for the
//     output's tokens.
//  4. While fewer than min_new_tokens are generated, suppressed_token_ids become -infinity.
//  5. temperature 0: the highest logit wins, ties to the lower id. Otherwise divide by it, and
//  6. top_k keeps the k highest (ties to the lower id); top_p keeps the smallest set of the most
//     probable tokens of what is left (renormalised) whose mass reaches it; min_p drops tokens
//     below min_p times the highest probability of what is left.
//  7. Gumbel-max: the kept token with the highest logit + GumbelNoise(seed, index, id), where index
//     counts the tokens this sequence has generated (philox.h).
// Log-probabilities are the log-softmax of the logits before step 1.
#pragma once

#include <cstdint>
#include <vector>

namespace tidal {

struct LogitBias {
  int32_t token_id;
  float bias;
};

struct SamplingParams {
  float temperature = 1.0f;         // >= 0; 0 = greedy
  float top_p = 1.0f;               // (0, 1]
  int32_t top_k = 0;                // 0 = all
  float min_p = 0.0f;               // [0, 1]
  float repetition_penalty = 1.0f;  // > 0
  float presence_penalty = 0.0f;    // [-2, 2]
  float frequency_penalty = 0.0f;   // [-2, 2]
  uint64_t seed = 0;
  std::vector<LogitBias> logit_bias = {};
  int32_t min_new_tokens = 0;
  std::vector<int32_t> suppressed_token_ids = {};  // end-of-sequence and stop tokens
  bool return_logprobs = false;
  int32_t num_top_logprobs = 0;  // 0..kMaxTopLogprobs, besides the drawn token's own
};

inline constexpr int32_t kMaxTopLogprobs = 20;

struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0.0f;
};

// One drawn token.
struct SampledToken {
  int32_t token_id = 0;
  float logprob = 0.0f;                         // valid where return_logprobs was asked for
  std::vector<TokenLogprob> top_logprobs = {};  // [num_top_logprobs], most probable first
};

}  // namespace tidal
