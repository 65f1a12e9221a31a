#include "client/command/client_program.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "client/command/commands.h"

namespace tidal::client {
namespace {

struct Subcommand {
  absl::string_view name;
  absl::string_view summary;
  ExitCode (*run)(absl::Span<const std::string> arguments, CommandContext& context);
};

constexpr std::array<Subcommand, 6> kSubcommands = {{
    {"generate", "generate text after a prompt, streamed as it comes", RunGenerate},
    {"tokenize", "show the tokens of a text", RunTokenize},
    {"info", "show the model and the limits of a server", RunInfo},
    {"health", "show whether a server or service is serving", RunHealth},
    {"bench", "measure latencies and throughput under a load", RunBench},
    {"top", "watch a server's metrics", RunTop},
}};

constexpr absl::string_view kExitCodes = R"(exit codes:
  0    success; for health: SERVING
  2    wrong command line or unreadable prompt
  3    no connection, or the server is not serving
  4    the server refuses the request as it is (INVALID_ARGUMENT, UNIMPLEMENTED and the like)
  5    a limit of the server is reached (RESOURCE_EXHAUSTED); try again later
  6    the timeout passed (DEADLINE_EXCEEDED)
  7    cancelled or aborted at the server
  8    any other error (INTERNAL and the like)
  130  interrupted by Ctrl-C
  141  nobody reads standard output any more
)";

std::string Usage() {
  std::string usage = "usage: tidal-client [FLAGS] COMMAND [FLAGS]\n\ncommands:\n";
  for (const Subcommand& subcommand : kSubcommands) {
    absl::StrAppendFormat(&usage, "  %-10s%s\n", subcommand.name, subcommand.summary);
  }
  absl::StrAppend(&usage, "Flags of a command: tidal-client COMMAND --help\n");
  return usage;
}

}  // namespace

ExitCode RunClientProgram(absl::Span<const std::string> arguments, Console& console,
                          const ChannelFactory& make_channel, CallCanceller& canceller) {
  CommandContext context{CommonFlags(), console, make_channel, canceller, {}, {}};
  FlagSet flags;
  AddCommonFlags(flags, &context.common);
  const auto rest = flags.Parse(arguments, /*stop_at_positional=*/true);
  if (!rest.ok()) return ReportUsageError(rest.status(), console);
  if (rest->empty()) {
    if (context.common.help) {
      console.out << Usage() << "\nflags:\n" << flags.Help() << "\n" << kExitCodes;
      return ExitCode::kOk;
    }
    console.err << Usage();
    return ExitCode::kUsage;
  }
  const auto it =
      std::find_if(kSubcommands.begin(), kSubcommands.end(),
                   [&rest](const Subcommand& known) { return known.name == rest->front(); });
  if (it == kSubcommands.end()) {
    console.err << "tidal-client: unknown command '" << rest->front() << "'\n" << Usage();
    return ExitCode::kUsage;
  }
  return it->run(absl::MakeConstSpan(*rest).subspan(1), context);
}

}  // namespace tidal::client
