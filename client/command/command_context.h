// What every subcommand is given: common flags, console, a way to the server.
#pragma once

#include <grpcpp/channel.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/call_canceller.h"
#include "client/command/console.h"
#include "client/command/credentials.h"
#include "client/command/exit_code.h"
#include "client/command/flag_set.h"
#include "client/inference_client.h"

namespace tidal::client {

// Flags that every subcommand takes, before or after its name.
struct CommonFlags {
  std::string target = "localhost:50051";
  absl::Duration timeout = absl::InfiniteDuration();  // of each call
  bool json = false;
  bool help = false;
  CredentialFlags credentials;
};

// `values` must outlive `flags`.
void AddCommonFlags(FlagSet& flags, CommonFlags* values);

using ChannelFactory = std::function<std::shared_ptr<grpc::Channel>(const std::string& target,
                                                                    const ChannelOptions& options)>;

// One run of the program. Not thread-safe, but for the canceller.
struct CommandContext {
  CommonFlags common;
  Console& console;
  const ChannelFactory& make_channel;
  CallCanceller& canceller;
  // Read from the files of common.credentials by ParseCommand.
  ChannelOptions channel_options;
  std::string bearer_token;

  // Clients share a connection unless they ask for their own.
  InferenceClient MakeClient(bool has_own_connection = false) const;

  // Deadline of a call that begins now, and the canceller.
  CallOptions MakeCallOptions() const;

  // Reports why a call failed, and returns the exit code: kInterrupted where the user pressed
  // Ctrl-C.
  ExitCode Fail(const absl::Status& status) const;
};

// Parses the arguments of one subcommand, whose own flags `flags` holds already. `synopsis` is the
// first line of its help. Returns the exit code where the command is done with that: help, or a
// wrong command line. Otherwise fills `operands`, the arguments that are no flags.
std::optional<ExitCode> ParseCommand(absl::string_view synopsis, FlagSet& flags,
                                     absl::Span<const std::string> arguments,
                                     CommandContext& context, std::vector<std::string>* operands);

// As above, for a subcommand that takes no operands.
std::optional<ExitCode> ParseCommand(absl::string_view synopsis, FlagSet& flags,
                                     absl::Span<const std::string> arguments,
                                     CommandContext& context);

}  // namespace tidal::client
