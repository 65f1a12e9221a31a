// The exit codes of tidal-client: an interface for scripts, documented in docs/client.md.
#pragma once

#include "absl/status/status.h"

namespace tidal::client {

enum class ExitCode : int {
  kOk = 0,
  kUsage = 2,
  kUnavailable = 3,        // no connection, or the server is not serving
  kInvalidRequest = 4,     // the server refuses the request as it is
  kResourceExhausted = 5,  // a limit of the server is reached: try again later
  kDeadlineExceeded = 6,
  kCancelled = 7,
  kOther = 8,
  kInterrupted = 130,  // Ctrl-C
  kBrokenPipe = 141,   // the reader of standard output went away
};

ExitCode ExitCodeOf(const absl::Status& status);

}  // namespace tidal::client
