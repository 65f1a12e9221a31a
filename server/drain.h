// The end of serving, in order: readiness goes, then admission, then the calls. Main's thread only.
#pragma once

#include <functional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/lifecycle.h"

namespace tidal::server {

struct DrainOptions {
  absl::Duration lame_duck_interval = absl::ZeroDuration();  // NOT_SERVING, but still admitting
  absl::Duration shutdown_timeout = absl::Seconds(30);       // for admitted calls to finish
  absl::Duration abort_timeout = absl::Seconds(5);           // for aborted ones to hear of it
};

// What draining acts upon; all but `lifecycle` may be replaced by tests.
struct DrainTargets {
  Lifecycle* lifecycle;
  std::function<void(bool)> set_ready;
  std::function<void(absl::Status)> stop_engine;  // fails what still runs
};

enum class DrainResult : uint8_t {
  kOrderly,  // calls have finished, or been aborted when their time was over
  kForced,   // a second signal has cut it short
  kFault,    // the engine has failed
};

// Returns with the engine stopped and nobody admitted. A second signal, or a fault, skips what is
// left to wait for.
DrainResult Drain(const DrainTargets& targets, const DrainOptions& options);

}  // namespace tidal::server
