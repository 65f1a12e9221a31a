// Runs tidal-client in this process against a fake server.
#pragma once

#include <sstream>
#include <string>
#include <vector>

#include "client/command/client_program.h"
#include "tests/client/fake_server.h"

namespace tidal::client {

struct ProgramResult {
  ExitCode exit_code = ExitCode::kOk;
  std::string out;
  std::string err;
};

struct ProgramInput {
  std::string in;
  bool in_is_terminal = false;
  bool out_is_terminal = false;
  bool err_is_terminal = false;
};

inline ProgramResult RunProgram(FakeServer& server, const std::vector<std::string>& arguments,
                                const ProgramInput& input = {}) {
  std::istringstream in(input.in);
  std::ostringstream out;
  std::ostringstream err;
  Console console{in, out, err, input.in_is_terminal, input.out_is_terminal, input.err_is_terminal};
  CallCanceller canceller;
  ProgramResult result;
  result.exit_code = RunClientProgram(
      arguments, console,
      [&server](const std::string& /*target*/, const ChannelOptions& /*options*/) {
        return server.MakeChannel();
      },
      canceller);
  result.out = out.str();
  result.err = err.str();
  return result;
}

}  // namespace tidal::client
