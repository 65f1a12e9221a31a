#include "client/command/console.h"

#include "absl/time/time.h"
#include "client/command/event_json.h"
#include "client/rpc_status.h"

namespace tidal::client {

ExitCode ReportError(const absl::Status& status, bool as_json, Console& console) {
  if (as_json) WriteJsonLine(ErrorJson(status), console.out);
  console.err << "tidal-client: " << absl::StatusCodeToString(status.code()) << ": "
              << status.message() << "\n";
  for (const FieldViolation& violation : FieldViolationsOf(status)) {
    console.err << "  " << violation.field << ": " << violation.description << "\n";
  }
  if (const auto delay = RetryDelayOf(status)) {
    console.err << "  retry after " << absl::FormatDuration(*delay) << "\n";
  }
  return ExitCodeOf(status);
}

ExitCode ReportUsageError(const absl::Status& status, Console& console) {
  console.err << "tidal-client: " << status.message() << "\n"
              << "Try 'tidal-client --help'.\n";
  return ExitCode::kUsage;
}

}  // namespace tidal::client
