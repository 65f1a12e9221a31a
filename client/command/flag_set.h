// The flags of one subcommand: parses arguments into variables and prints its own help. Flags may
// be absent (std::optional), repeated, and wrong without ending the process, which the global flags
// of Abseil cannot; values are read by Abseil's parsers of flag types.
// Not thread-safe.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/flags/marshalling.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace tidal::client {

class FlagSet {
 public:
  // `value` names the value in the help; empty for a bool. The variable must outlive the set, and
  // is changed only where the flag occurs; the last occurrence counts.
  template <typename T>
  void Add(absl::string_view name, T* variable, absl::string_view value, absl::string_view help) {
    AddParser(
        name, std::is_same_v<T, bool>,
        [variable](absl::string_view text) { return ParseValue(text, variable); }, value, help);
  }
  template <typename T>
  void Add(absl::string_view name, std::optional<T>* variable, absl::string_view value,
           absl::string_view help) {
    AddParser(
        name, std::is_same_v<T, bool>,
        [variable](absl::string_view text) { return ParseValue(text, &variable->emplace()); },
        value, help);
  }

  // Each occurrence appends its value as it is.
  void AddRepeated(absl::string_view name, std::vector<std::string>* values,
                   absl::string_view value, absl::string_view help);

  // `parse` says what is wrong with a value, as in "it must be full or tidal".
  void AddCustom(absl::string_view name, std::function<absl::Status(absl::string_view)> parse,
                 absl::string_view value, absl::string_view help);

  // Parses --name=value, --name value, --name and --noname (bools), and one dash for two; `--` ends
  // the flags. Returns the arguments that are no flags; with `stop_at_positional` the first of them
  // ends the parsing, and it and all that follow are returned. A lone `-` is no flag.
  // INVALID_ARGUMENT names the flag that is unknown or wrong.
  absl::StatusOr<std::vector<std::string>> Parse(absl::Span<const std::string> arguments,
                                                 bool stop_at_positional = false) const;

  // One flag a line, in the order of addition.
  std::string Help() const;

 private:
  using Parser = std::function<absl::Status(absl::string_view)>;
  struct Flag {
    std::string name;
    bool is_bool;
    Parser parse;
    std::string value;
    std::string help;
  };

  template <typename T>
  static absl::Status ParseValue(absl::string_view text, T* variable) {
    std::string error;
    if (absl::ParseFlag(text, variable, &error)) return absl::OkStatus();
    return absl::InvalidArgumentError(error.empty() ? "it is malformed or out of range" : error);
  }

  void AddParser(absl::string_view name, bool is_bool, Parser parse, absl::string_view value,
                 absl::string_view help);
  const Flag* Find(absl::string_view name) const;
  // `arguments[*index]` is a flag; moves `*index` to its value where that is an argument of its
  // own.
  absl::Status ParseFlagAt(absl::Span<const std::string> arguments, std::size_t* index) const;

  std::vector<Flag> flags_;
};

}  // namespace tidal::client
