// Monotonic time, injected so that tests own it. Not wall time: only differences mean anything.
#pragma once

#include "absl/time/time.h"

namespace tidal {

class Clock {
 public:
  virtual ~Clock() = default;

  // Never goes back. Any thread.
  virtual absl::Time Now() const = 0;

  // The process's steady clock.
  static const Clock* Monotonic();
};

}  // namespace tidal
