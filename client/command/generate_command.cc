#include "client/command/commands.h"
#include "client/command/generate_flags.h"
#include "client/command/generate_output.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;

ExitCode Stream(const GenerateFlags& flags, CommandContext& context, GenerateOutput& output) {
  v1::GenerateStreamRequest request;
  if (const absl::Status status = FillRequest(flags, context.console, &request); !status.ok()) {
    return ReportUsageError(status, context.console);
  }
  bool output_is_read = true;
  const absl::Status status = context.MakeClient().GenerateStream(
      request,
      [&](const v1::GenerateStreamResponse& event) {
        output_is_read = output.OnEvent(event);
        return output_is_read;
      },
      context.MakeCallOptions());
  if (!output_is_read) return ExitCode::kBrokenPipe;
  if (status.ok()) return ExitCode::kOk;
  output.OnFailure();
  return context.Fail(status);
}

ExitCode Generate(const GenerateFlags& flags, CommandContext& context, GenerateOutput& output) {
  v1::GenerateRequest request;
  if (const absl::Status status = FillRequest(flags, context.console, &request); !status.ok()) {
    return ReportUsageError(status, context.console);
  }
  const auto response = context.MakeClient().Generate(request, context.MakeCallOptions());
  if (!response.ok()) return context.Fail(response.status());
  return output.OnResponse(*response) ? ExitCode::kOk : ExitCode::kBrokenPipe;
}

}  // namespace

ExitCode RunGenerate(absl::Span<const std::string> arguments, CommandContext& context) {
  GenerateFlags values;
  FlagSet flags;
  AddGenerateFlags(flags, &values);
  if (const auto done = ParseCommand("tidal-client generate [FLAGS] [PROMPT | -]", flags, arguments,
                                     context, &values.prompt.operand)) {
    return *done;
  }
  const auto output =
      context.common.json ? MakeJsonOutput(context.console) : MakeTextOutput(context.console);
  return values.no_stream ? Generate(values, context, *output) : Stream(values, context, *output);
}

}  // namespace tidal::client
