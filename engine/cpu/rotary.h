// Rotary position embedding (Su et al., arXiv 2104.09864) in Hugging Face's layout: pair i of a
// head is its elements i and i + head_dim / 2. The angle is position * inverse_frequency rounded to
// float32, as Hugging Face computes it. Thread-safe.
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace tidal::cpu {

// cosines and sines, [head_dim / 2] each, of one position.
void RotaryAngles(absl::Span<const float> inverse_frequencies, int32_t position, float* cosines,
                  float* sines);

// Turns num_heads heads, [num_heads][2 * half_dim], in place and multiplies them by `scale`.
void RotateHeads(const float* cosines, const float* sines, int32_t half_dim, int32_t num_heads,
                 float scale, float* heads);

}  // namespace tidal::cpu
