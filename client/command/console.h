// What a command reads and writes: the process's standard streams, or strings in a test.
#pragma once

#include <istream>
#include <ostream>

#include "absl/status/status.h"
#include "client/command/exit_code.h"

namespace tidal::client {

// The streams are not owned and must outlive the console.
struct Console {
  std::istream& in;
  std::ostream& out;
  std::ostream& err;
  bool in_is_terminal = false;
  bool out_is_terminal = false;
  bool err_is_terminal = false;
};

// Writes a failed call to `console.err`: code, message, wrong fields, delay before a retry. With
// `as_json` also a line `{"event":"error",...}` to `console.out`. Returns the exit code.
ExitCode ReportError(const absl::Status& status, bool as_json, Console& console);

// Writes why the command line is wrong. Returns kUsage.
ExitCode ReportUsageError(const absl::Status& status, Console& console);

}  // namespace tidal::client
