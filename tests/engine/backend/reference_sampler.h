// engine/backend/sampling.h in its plainest form: sort everything, keep nothing between calls.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/backend/sampling.h"

namespace tidal::testing {

struct SamplerHistory {
  std::vector<int32_t> prompt;
  std::vector<int32_t> generated;
};

// The tokens that top_k, top_p and min_p keep, most probable first, and their logits after
// penalties and temperature. Greedy keeps one.
struct KeptTokens {
  std::vector<int32_t> ids;
  std::vector<float> logits;  // [vocab]
};

KeptTokens ReferenceKeep(const SamplingParams& params, const SamplerHistory& history,
                         std::vector<float> logits);

SampledToken ReferenceSample(const SamplingParams& params, const SamplerHistory& history,
                             const std::vector<float>& logits);

}  // namespace tidal::testing
