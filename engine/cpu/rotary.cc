#include "engine/cpu/rotary.h"

#include <cmath>

namespace tidal::cpu {

void RotaryAngles(absl::Span<const float> inverse_frequencies, int32_t position, float* cosines,
                  float* sines) {
  for (size_t i = 0; i < inverse_frequencies.size(); ++i) {
    const float angle = static_cast<float>(position) * inverse_frequencies[i];
    cosines[i] = std::cos(angle);
    sines[i] = std::sin(angle);
  }
}

void RotateHeads(const float* cosines, const float* sines, int32_t half_dim, int32_t num_heads,
                 float scale, float* heads) {
  for (int32_t head = 0; head < num_heads; ++head) {
    float* first = heads + int64_t{head} * 2 * half_dim;
    float* second = first + half_dim;
    for (int32_t i = 0; i < half_dim; ++i) {
      const float x = first[i];
      const float y = second[i];
      first[i] = (x * cosines[i] - y * sines[i]) * scale;
      second[i] = (y * cosines[i] + x * sines[i]) * scale;
    }
  }
}

}  // namespace tidal::cpu
