// How long the random walks of tests are: as long as the environment's TIDAL_RANDOM_WALK_STEPS
// says, or short enough for every build.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "absl/strings/numbers.h"

namespace tidal {

inline int64_t NumRandomWalkSteps(int64_t default_steps) {
  const char* text = std::getenv("TIDAL_RANDOM_WALK_STEPS");
  int64_t steps = 0;
  return text != nullptr && absl::SimpleAtoi(text, &steps) ? steps : default_steps;
}

}  // namespace tidal
