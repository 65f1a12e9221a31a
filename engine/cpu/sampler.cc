#include "engine/cpu/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/backend/checks.h"
#include "engine/backend/philox.h"
#include "engine/backend/status_macros.h"
#include "engine/backend/step_batch.h"

namespace tidal::cpu {
namespace {

// GumbelNoise is below this: u <= 1 - 2^-24.
constexpr float kMaxGumbelNoise = 16.7f;

// Higher logits first, ties to the lower id.
struct MoreProbable {
  const float* logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  }
};

int32_t HighestLogit(absl::Span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Moves the `count` most probable ids to the front, most probable first.
void SortMostProbable(const float* logits, size_t count, absl::Span<int32_t> ids) {
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count), ids.end(),
                    MoreProbable{logits});
}

// How many of `ids` top_p keeps; they are moved to the front.
size_t KeepTopP(float top_p, float max, const float* logits, absl::Span<int32_t> ids) {
  double total = 0.0;
  for (const int32_t id : ids) total += std::exp(logits[id] - max);
  const double wanted = total * top_p;
  // Most often few tokens hold the mass, so sort ever longer beginnings.
  double mass = 0.0;
  size_t num_sorted = 0;
  for (size_t part = 64; num_sorted < ids.size(); part *= 8) {
    const absl::Span<int32_t> rest = ids.subspan(num_sorted);
    const size_t count = std::min(part, rest.size());
    SortMostProbable(logits, count, rest);
    for (size_t i = 0; i < count; ++i) {
      mass += std::exp(logits[rest[i]] - max);
      if (mass >= wanted) return num_sorted + i + 1;
    }
    num_sorted += count;
  }
  return ids.size();
}

// Step 7. `best` is the kept token with the highest logit.
int32_t DrawGumbelMax(uint64_t seed, uint64_t index, const float* logits, int32_t best,
                      absl::Span<const int32_t> ids) {
  float best_value = logits[best] + GumbelNoise(seed, index, static_cast<uint32_t>(best));
  for (const int32_t id : ids) {
    // No noise lifts this one high enough: most tokens end here.
    if (logits[id] + kMaxGumbelNoise < best_value) continue;
    const float value = logits[id] + GumbelNoise(seed, index, static_cast<uint32_t>(id));
    if (value > best_value || (value == best_value && id < best)) {
      best_value = value;
      best = id;
    }
  }
  return best;
}

}  // namespace

Sampler::Sampler(int32_t num_slots, int32_t vocab_size, int num_threads, const Kernels* kernels)
    : vocab_size_(vocab_size),
      kernels_(kernels),
      slots_(static_cast<size_t>(num_slots)),
      scratch_(static_cast<size_t>(num_threads)) {}

void Sampler::LayOut(Arena* arena) {
  for (Slot& slot : slots_) {
    slot.output_counts = arena->Take<int32_t>(vocab_size_);
    slot.seen = arena->Take<uint8_t>(vocab_size_);
  }
  for (Scratch& scratch : scratch_) {
    scratch.logits = arena->Take<float>(vocab_size_);
    scratch.ids = arena->Take<int32_t>(vocab_size_);
  }
}

void Sampler::AddToHistory(int32_t token_id, bool generated, Slot* slot) const {
  const size_t id = static_cast<size_t>(token_id);
  if (!slot->seen[id]) {
    slot->seen[id] = 1;
    slot->seen_token_ids.push_back(token_id);
  }
  if (!generated) return;
  ++slot->output_counts[id];
  ++slot->num_generated_tokens;
  slot->last_token = token_id;
}

absl::Status Sampler::Bind(int32_t slot_index, const SamplingParams& params,
                           absl::Span<const int32_t> prompt_token_ids,
                           absl::Span<const int32_t> generated_token_ids) {
  TIDAL_RETURN_IF_ERROR(CheckBinding(slot_index, params, prompt_token_ids, generated_token_ids,
                                     static_cast<int32_t>(slots_.size()), vocab_size_));
  Slot& slot = slots_[static_cast<size_t>(slot_index)];
  for (const int32_t id : slot.seen_token_ids) {
    slot.seen[static_cast<size_t>(id)] = 0;
    slot.output_counts[static_cast<size_t>(id)] = 0;
  }
  slot.seen_token_ids.clear();
  slot.params = params;
  slot.num_generated_tokens = 0;
  slot.last_token = kLastSampledToken;
  for (const int32_t id : prompt_token_ids) AddToHistory(id, /*generated=*/false, &slot);
  for (const int32_t id : generated_token_ids) AddToHistory(id, /*generated=*/true, &slot);
  return absl::OkStatus();
}

void Sampler::Adjust(const Slot& slot, absl::Span<float> logits) const {
  const SamplingParams& params = slot.params;
  for (const LogitBias& entry : params.logit_bias) {
    logits[static_cast<size_t>(entry.token_id)] += entry.bias;
  }
  const bool penalised = params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
                         params.frequency_penalty != 0.0f;
  if (penalised) {
    for (const int32_t token_id : slot.seen_token_ids) {
      const size_t id = static_cast<size_t>(token_id);
      float logit = logits[id];
      logit = logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      if (const int32_t count = slot.output_counts[id]; count > 0) {
        logit -= params.presence_penalty;
        logit -= params.frequency_penalty * static_cast<float>(count);
      }
      logits[id] = logit;
    }
  }
  if (slot.num_generated_tokens < params.min_new_tokens) {
    for (const int32_t id : params.suppressed_token_ids) {
      logits[static_cast<size_t>(id)] = -std::numeric_limits<float>::infinity();
    }
  }
}

absl::Span<int32_t> Sampler::Filter(const SamplingParams& params, absl::Span<const float> logits,
                                    absl::Span<int32_t> ids) const {
  std::iota(ids.begin(), ids.end(), 0);
  const float max = *std::max_element(logits.begin(), logits.end());
  if (params.top_k > 0 && params.top_k < vocab_size_) {
    std::nth_element(ids.begin(), ids.begin() + params.top_k - 1, ids.end(),
                     MoreProbable{logits.data()});
    ids = ids.first(static_cast<size_t>(params.top_k));
  }
  if (params.top_p < 1.0f) ids = ids.first(KeepTopP(params.top_p, max, logits.data(), ids));
  if (params.min_p > 0.0f) {
    const auto end = std::remove_if(ids.begin(), ids.end(), [&](int32_t id) {
      return std::exp(logits[static_cast<size_t>(id)] - max) < params.min_p;
    });
    ids = ids.first(static_cast<size_t>(end - ids.begin()));
  }
  return ids;
}

void Sampler::FillLogprobs(const SamplingParams& params, absl::Span<const float> logits,
                           absl::Span<int32_t> ids, SampledToken* token) const {
  const float max = *std::max_element(logits.begin(), logits.end());
  const float log_sum =
      std::log(kernels_->sum_exp(logits.data(), static_cast<int64_t>(logits.size()), max));
  const auto logprob = [&](int32_t id) { return logits[static_cast<size_t>(id)] - max - log_sum; };
  token->logprob = logprob(token->token_id);
  if (params.num_top_logprobs == 0) return;
  const size_t count = static_cast<size_t>(params.num_top_logprobs);
  std::iota(ids.begin(), ids.end(), 0);
  SortMostProbable(logits.data(), count, ids);
  for (const int32_t id : ids.first(count)) token->top_logprobs.push_back({id, logprob(id)});
}

SampledToken Sampler::Sample(int32_t slot_index, absl::Span<const float> raw_logits, int thread) {
  Slot& slot = slots_[static_cast<size_t>(slot_index)];
  const SamplingParams& params = slot.params;
  const Scratch& scratch = scratch_[static_cast<size_t>(thread)];
  const absl::Span<float> logits = scratch.logits;
  std::copy(raw_logits.begin(), raw_logits.end(), logits.begin());
  Adjust(slot, logits);
  SampledToken token;
  token.token_id = HighestLogit(logits);
  if (params.temperature > 0.0f) {
    for (float& logit : logits) logit /= params.temperature;
    token.token_id = HighestLogit(logits);
    const absl::Span<const int32_t> kept = Filter(params, logits, scratch.ids);
    token.token_id = DrawGumbelMax(params.seed, static_cast<uint64_t>(slot.num_generated_tokens),
                                   logits.data(), token.token_id, kept);
  }
  if (params.return_logprobs) FillLogprobs(params, raw_logits, scratch.ids, &token);
  AddToHistory(token.token_id, /*generated=*/true, &slot);
  return token;
}

}  // namespace tidal::cpu
