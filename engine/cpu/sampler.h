// Draws tokens from logits, to the letter of engine/backend/sampling.h, and keeps each slot's
// history of tokens. Sample may run for different slots at once; everything else is for the engine
// thread alone.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/backend/sampling.h"
#include "engine/cpu/arena.h"
#include "engine/cpu/kernels.h"

namespace tidal::cpu {

class Sampler {
 public:
  Sampler(int32_t num_slots, int32_t vocab_size, int num_threads, const Kernels* kernels);

  void LayOut(Arena* arena);

  // Backend::BindSampler. INVALID_ARGUMENT for a slot, token id or number out of range.
  absl::Status Bind(int32_t slot, const SamplingParams& params,
                    absl::Span<const int32_t> prompt_token_ids,
                    absl::Span<const int32_t> generated_token_ids);

  // The token that the slot drew last, or the last one generated when it was bound;
  // kLastSampledToken where there is none.
  int32_t last_token(int32_t slot) const { return slots_[static_cast<size_t>(slot)].last_token; }

  // Draws from logits [vocab_size] and appends the token to the slot's history.
  SampledToken Sample(int32_t slot, absl::Span<const float> logits, int thread);

 private:
  struct Slot {
    SamplingParams params;
    int64_t num_generated_tokens = 0;
    int32_t last_token = -1;
    std::vector<int32_t> seen_token_ids;  // distinct tokens of prompt and output
    absl::Span<int32_t> output_counts;    // [vocab] occurrences in the output
    absl::Span<uint8_t> seen;             // [vocab] whether in seen_token_ids
  };
  struct Scratch {
    absl::Span<float> logits;  // [vocab] after penalties and temperature
    absl::Span<int32_t> ids;   // [vocab]
  };

  void AddToHistory(int32_t token_id, bool generated, Slot* slot) const;

  // Steps 1 to 4 of sampling.h.
  void Adjust(const Slot& slot, absl::Span<float> logits) const;

  // Step 6: moves the kept ids to the front and returns them.
  absl::Span<int32_t> Filter(const SamplingParams& params, absl::Span<const float> logits,
                             absl::Span<int32_t> ids) const;

  void FillLogprobs(const SamplingParams& params, absl::Span<const float> logits,
                    absl::Span<int32_t> ids, SampledToken* token) const;

  int32_t vocab_size_;
  const Kernels* kernels_;
  std::vector<Slot> slots_;
  std::vector<Scratch> scratch_;  // one for each thread
};

}  // namespace tidal::cpu
