// TidalDecode's choice of positions (attention.h of the seam). Thread-safe.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "engine/backend/attention.h"
#include "engine/cpu/kernels.h"

namespace tidal::cpu {

// Writes the selection.token_budget chosen positions, ascending, to `positions`: sinks, recents and
// the best of the rest by score, ties to the lower position. scores: [num_context_tokens], more
// than the budget; overwritten.
void SelectPositions(const Kernels& kernels, const Selection& selection, absl::Span<float> scores,
                     int32_t* positions);

}  // namespace tidal::cpu
