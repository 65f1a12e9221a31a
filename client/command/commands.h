// The subcommands of tidal-client. Each parses its own arguments, makes its call and reports on the
// context's console; the result is the exit code of the program.
#pragma once

#include <string>

#include "absl/types/span.h"
#include "client/command/command_context.h"

namespace tidal::client {

// Generates text after a prompt.
ExitCode RunGenerate(absl::Span<const std::string> arguments, CommandContext& context);

// Prints the tokens of a text: id, tab, bytes with escapes, one token a line.
ExitCode RunTokenize(absl::Span<const std::string> arguments, CommandContext& context);

// Prints model, default attention and limits.
ExitCode RunInfo(absl::Span<const std::string> arguments, CommandContext& context);

// Prints the health of a service: kOk only where it is SERVING, else kUnavailable.
ExitCode RunHealth(absl::Span<const std::string> arguments, CommandContext& context);

// Puts load on the server, and prints and draws what it measured.
ExitCode RunBench(absl::Span<const std::string> arguments, CommandContext& context);

// Shows what the server does, from its metrics, until it is interrupted.
ExitCode RunTop(absl::Span<const std::string> arguments, CommandContext& context);

}  // namespace tidal::client
