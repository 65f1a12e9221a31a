// tidal-client without its process: everything but signals, standard streams and exit.
#pragma once

#include <string>

#include "absl/types/span.h"
#include "client/call_canceller.h"
#include "client/command/command_context.h"
#include "client/command/console.h"
#include "client/command/exit_code.h"

namespace tidal::client {

// Runs the command line `arguments`, which does not hold the program's name. `make_channel` is
// called after the prompt is read, once for each connection. Cancelling `canceller` from another
// thread is Ctrl-C.
ExitCode RunClientProgram(absl::Span<const std::string> arguments, Console& console,
                          const ChannelFactory& make_channel, CallCanceller& canceller);

}  // namespace tidal::client
