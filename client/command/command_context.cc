#include "client/command/command_context.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace tidal::client {
namespace {

absl::Status ReadCredentials(CommandContext& context) {
  auto tls = ReadTlsOptions(context.common.credentials);
  if (!tls.ok()) return tls.status();
  auto token = ReadBearerToken(context.common.credentials);
  if (!token.ok()) return token.status();
  context.channel_options.tls = *std::move(tls);
  context.bearer_token = *std::move(token);
  return absl::OkStatus();
}

}  // namespace

void AddCommonFlags(FlagSet& flags, CommonFlags* values) {
  flags.Add("target", &values->target, "HOST:PORT", "the server; localhost:50051 by default");
  flags.Add("timeout", &values->timeout, "DURATION", "longest time for the call, as in 1m30s");
  flags.Add("json", &values->json, "", "print JSON, one object a line");
  AddCredentialFlags(flags, &values->credentials);
  flags.Add("help", &values->help, "", "print this help");
}

InferenceClient CommandContext::MakeClient(bool has_own_connection) const {
  ChannelOptions options = channel_options;
  options.has_own_connection = has_own_connection;
  return InferenceClient(make_channel(common.target, options), bearer_token);
}

CallOptions CommandContext::MakeCallOptions() const {
  return {absl::Now() + common.timeout, &canceller};
}

ExitCode CommandContext::Fail(const absl::Status& status) const {
  if (!canceller.cancelled()) return ReportError(status, common.json, console);
  console.err << "tidal-client: interrupted\n";
  return ExitCode::kInterrupted;
}

std::optional<ExitCode> ParseCommand(absl::string_view synopsis, FlagSet& flags,
                                     absl::Span<const std::string> arguments,
                                     CommandContext& context, std::vector<std::string>* operands) {
  AddCommonFlags(flags, &context.common);
  absl::StatusOr<std::vector<std::string>> rest = flags.Parse(arguments);
  if (!rest.ok()) return ReportUsageError(rest.status(), context.console);
  if (context.common.help) {
    context.console.out << "usage: " << synopsis << "\n\n" << flags.Help();
    return ExitCode::kOk;
  }
  if (const absl::Status status = ReadCredentials(context); !status.ok()) {
    return ReportUsageError(status, context.console);
  }
  *operands = *std::move(rest);
  return std::nullopt;
}

std::optional<ExitCode> ParseCommand(absl::string_view synopsis, FlagSet& flags,
                                     absl::Span<const std::string> arguments,
                                     CommandContext& context) {
  std::vector<std::string> operands;
  if (const auto done = ParseCommand(synopsis, flags, arguments, context, &operands)) return done;
  if (operands.empty()) return std::nullopt;
  return ReportUsageError(
      absl::InvalidArgumentError(absl::StrCat("unexpected argument '", operands.front(), "'")),
      context.console);
}

}  // namespace tidal::client
