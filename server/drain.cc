#include "server/drain.h"

#include <cstdint>
#include <string>

#include "server/logging.h"

namespace tidal::server {

DrainResult Drain(const DrainTargets& targets, const DrainOptions& options) {
  Lifecycle* lifecycle = targets.lifecycle;
  targets.set_ready(false);
  Log(LogLevel::info, "draining",
      {{"active_calls", int64_t{lifecycle->num_active_calls()}},
       {"shutdown_timeout", absl::FormatDuration(options.shutdown_timeout)}});
  lifecycle->WaitForUrgency(options.lame_duck_interval);
  lifecycle->Drain();
  if (!lifecycle->WaitForCalls(options.shutdown_timeout)) {
    Log(LogLevel::warn, "aborting calls",
        {{"active_calls", int64_t{lifecycle->num_active_calls()}}});
  }
  targets.stop_engine(absl::UnavailableError("the server is shutting down"));
  lifecycle->WaitForCallsUninterrupted(options.abort_timeout);
  lifecycle->Stop();
  if (!lifecycle->fault().ok()) return DrainResult::kFault;
  return lifecycle->num_signals() >= 2 ? DrainResult::kForced : DrainResult::kOrderly;
}

}  // namespace tidal::server
