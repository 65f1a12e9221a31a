#include "client/command/commands.h"
#include "client/command/event_json.h"

namespace tidal::client {
namespace {

using grpc::health::v1::HealthCheckResponse;

// A probe is to fail, not to hang.
constexpr absl::Duration kDefaultTimeout = absl::Seconds(5);

}  // namespace

ExitCode RunHealth(absl::Span<const std::string> arguments, CommandContext& context) {
  std::string service;
  FlagSet flags;
  flags.Add("service", &service, "NAME", "full name of a service; the whole server by default");
  if (context.common.timeout == absl::InfiniteDuration()) context.common.timeout = kDefaultTimeout;
  if (const auto done = ParseCommand("tidal-client health [FLAGS]", flags, arguments, context)) {
    return *done;
  }
  const auto status = context.MakeClient().CheckHealth(service, context.MakeCallOptions());
  if (!status.ok()) return context.Fail(status.status());
  const std::string name = HealthCheckResponse::ServingStatus_Name(*status);
  if (context.common.json) {
    WriteJsonLine({{"service", service}, {"status", name}}, context.console.out);
  } else {
    context.console.out << name << "\n" << std::flush;
  }
  return *status == HealthCheckResponse::SERVING ? ExitCode::kOk : ExitCode::kUnavailable;
}

}  // namespace tidal::client
