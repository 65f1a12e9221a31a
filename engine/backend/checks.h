// What every backend checks alike before it computes: sizes in range, a step within its limits.
// Messages name the value and its limits.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/backend/model_shape.h"
#include "engine/backend/sampling.h"
#include "engine/backend/step_batch.h"

namespace tidal {

// INVALID_ARGUMENT unless min <= value <= max.
absl::Status CheckRange(absl::string_view name, int64_t value, int64_t min, int64_t max);

// INVALID_ARGUMENT where sizes of the shape are out of range or do not fit each other.
absl::Status CheckShape(const ModelShape& shape);

// INVALID_ARGUMENT where a limit is not positive, or beyond what any backend can hold.
absl::Status CheckLimits(const StepLimits& limits);

// INVALID_ARGUMENT where the batch is outside of the limits, names a block that the cache of
// `num_blocks` blocks does not have, or asks for a selection that cannot be made.
absl::Status CheckStep(const StepBatch& batch, const ModelShape& shape, const StepLimits& limits,
                       int32_t num_blocks);

// INVALID_ARGUMENT where BindSampler's slot, a token id or num_top_logprobs is out of range.
absl::Status CheckBinding(int32_t slot, const SamplingParams& params,
                          absl::Span<const int32_t> prompt_token_ids,
                          absl::Span<const int32_t> generated_token_ids, int32_t num_slots,
                          int32_t vocab_size);

}  // namespace tidal
