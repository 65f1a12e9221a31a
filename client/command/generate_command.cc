#include <algorithm>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/random/random.h"
#include "absl/time/clock.h"
#include "client/command/commands.h"
#include "client/command/generate_flags.h"
#include "client/command/generate_output.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;

constexpr absl::Duration kFirstRetryDelay = absl::Milliseconds(200);
constexpr absl::Duration kMaxRetryDelay = absl::Seconds(5);

// Calls again while the answer is UNAVAILABLE, for `retry_for` in all: the delays double from 0.2 s
// to 5 s, and each is drawn from its upper half so that clients do not come back together. The call
// says with `may_retry` that nothing has come of it yet.
absl::Status CallWithRetries(absl::Duration retry_for, CommandContext& context,
                             absl::FunctionRef<absl::Status(bool* may_retry)> call) {
  const absl::Time give_up = absl::Now() + retry_for;
  absl::BitGen random;
  for (absl::Duration delay = kFirstRetryDelay;; delay = std::min(2 * delay, kMaxRetryDelay)) {
    bool may_retry = true;
    absl::Status status = call(&may_retry);
    const absl::Duration wait = delay * absl::Uniform(random, 0.5, 1.0);
    if (status.code() != absl::StatusCode::kUnavailable || !may_retry ||
        absl::Now() + wait > give_up || context.canceller.WaitForCancel(wait)) {
      return status;
    }
  }
}

ExitCode Stream(const GenerateFlags& flags, CommandContext& context, GenerateOutput& output) {
  v1::GenerateStreamRequest request;
  if (const absl::Status status = FillRequest(flags, context.console, &request); !status.ok()) {
    return ReportUsageError(status, context.console);
  }
  bool output_is_read = true;
  InferenceClient client = context.MakeClient();
  const CallOptions options = context.MakeCallOptions();
  const absl::Status status = CallWithRetries(flags.retry_for, context, [&](bool* may_retry) {
    return client.GenerateStream(
        request,
        [&](const v1::GenerateStreamResponse& event) {
          *may_retry = false;
          output_is_read = output.OnEvent(event);
          return output_is_read;
        },
        options);
  });
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
  InferenceClient client = context.MakeClient();
  const CallOptions options = context.MakeCallOptions();
  v1::GenerateResponse response;
  const absl::Status status = CallWithRetries(flags.retry_for, context, [&](bool* /*may_retry*/) {
    auto answer = client.Generate(request, options);
    if (!answer.ok()) return answer.status();
    response = *std::move(answer);
    return absl::OkStatus();
  });
  if (!status.ok()) return context.Fail(status);
  return output.OnResponse(response) ? ExitCode::kOk : ExitCode::kBrokenPipe;
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
