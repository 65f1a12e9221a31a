// Where the text of a prompt comes from: an argument, a flag, a file or standard input.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/command/console.h"
#include "client/command/flag_set.h"

namespace tidal::client {

// The longest text that is read: what the channel sends in one message, less room for the rest of
// the request.
inline constexpr std::size_t kMaxPromptBytes = (64U << 20U) - (64U << 10U);

struct PromptSource {
  std::optional<std::string> text;   // --prompt
  std::optional<std::string> file;   // --prompt_file; "-" = standard input
  std::vector<std::string> operand;  // arguments that are no flags; "-" = standard input
};

void AddPromptFlags(FlagSet& flags, PromptSource* source);

// True where the command line names a prompt.
bool HasPrompt(const PromptSource& source);

// The text as it is, nothing trimmed. Where no source is named, standard input is read unless it is
// a terminal. INVALID_ARGUMENT where no source or several are given, the file cannot be read, or
// the text is longer than kMaxPromptBytes or no UTF-8.
absl::StatusOr<std::string> ReadPrompt(const PromptSource& source, Console& console);

}  // namespace tidal::client
