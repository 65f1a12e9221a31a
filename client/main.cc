// tidal-client: talks to a Tidal server from a terminal or a script. See docs/client.md.

#include <unistd.h>

#include <csignal>
#include <iostream>
#include <string>
#include <vector>

#include "client/command/client_program.h"
#include "client/command/interrupt_watcher.h"
#include "client/inference_client.h"

int main(int argc, char** argv) {
  // A closed pipe shows as a failed write, so that the call is cancelled in good order.
  std::signal(SIGPIPE, SIG_IGN);
  std::ios::sync_with_stdio(false);

  tidal::client::CallCanceller canceller;
  const tidal::client::InterruptWatcher watcher(canceller);
  tidal::client::Console console{std::cin,
                                 std::cout,
                                 std::cerr,
                                 isatty(STDIN_FILENO) == 1,
                                 isatty(STDOUT_FILENO) == 1,
                                 isatty(STDERR_FILENO) == 1};
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  return static_cast<int>(
      tidal::client::RunClientProgram(arguments, console, tidal::client::MakeChannel, canceller));
}
