#include "client/command/flag_set.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace tidal::client {
namespace {

bool IsFlag(absl::string_view argument) { return argument.size() > 1 && argument.front() == '-'; }

}  // namespace

void FlagSet::AddRepeated(absl::string_view name, std::vector<std::string>* values,
                          absl::string_view value, absl::string_view help) {
  AddCustom(
      name,
      [values](absl::string_view text) {
        values->emplace_back(text);
        return absl::OkStatus();
      },
      value, help);
}

void FlagSet::AddCustom(absl::string_view name,
                        std::function<absl::Status(absl::string_view)> parse,
                        absl::string_view value, absl::string_view help) {
  AddParser(name, /*is_bool=*/false, std::move(parse), value, help);
}

void FlagSet::AddParser(absl::string_view name, bool is_bool, Parser parse, absl::string_view value,
                        absl::string_view help) {
  flags_.push_back(
      {std::string(name), is_bool, std::move(parse), std::string(value), std::string(help)});
}

const FlagSet::Flag* FlagSet::Find(absl::string_view name) const {
  const auto it = std::find_if(flags_.begin(), flags_.end(),
                               [name](const Flag& flag) { return flag.name == name; });
  return it == flags_.end() ? nullptr : &*it;
}

absl::Status FlagSet::ParseFlagAt(absl::Span<const std::string> arguments,
                                  std::size_t* index) const {
  absl::string_view body = arguments[*index];
  if (!absl::ConsumePrefix(&body, "--")) body.remove_prefix(1);
  const std::size_t equals = body.find('=');
  const absl::string_view name = body.substr(0, equals);
  absl::string_view value;
  const Flag* flag = Find(name);
  if (flag == nullptr && equals == absl::string_view::npos) {
    absl::string_view positive = name;
    if (absl::ConsumePrefix(&positive, "no")) flag = Find(positive);
    if (flag != nullptr && !flag->is_bool) flag = nullptr;
    value = "false";
  } else if (equals != absl::string_view::npos) {
    value = body.substr(equals + 1);
  } else if (flag->is_bool) {
    value = "true";
  } else if (*index + 1 < arguments.size()) {
    value = arguments[++*index];
  } else {
    return absl::InvalidArgumentError(absl::StrCat("flag --", name, " lacks its value"));
  }
  if (flag == nullptr) return absl::InvalidArgumentError(absl::StrCat("unknown flag --", name));
  if (const absl::Status status = flag->parse(value); !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("flag --", name, " has the value '", value, "': ", status.message()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> FlagSet::Parse(absl::Span<const std::string> arguments,
                                                        bool stop_at_positional) const {
  std::vector<std::string> positional;
  std::size_t i = 0;
  for (; i < arguments.size(); ++i) {
    if (arguments[i] == "--") {
      ++i;
      break;
    }
    if (IsFlag(arguments[i])) {
      if (const absl::Status status = ParseFlagAt(arguments, &i); !status.ok()) return status;
    } else if (stop_at_positional) {
      break;
    } else {
      positional.push_back(arguments[i]);
    }
  }
  for (; i < arguments.size(); ++i) positional.push_back(arguments[i]);
  return positional;
}

std::string FlagSet::Help() const {
  std::string help;
  for (const Flag& flag : flags_) {
    const std::string form = flag.is_bool ? absl::StrCat("--", flag.name)
                                          : absl::StrCat("--", flag.name, "=", flag.value);
    absl::StrAppendFormat(&help, "  %-32s %s\n", form, flag.help);
  }
  return help;
}

}  // namespace tidal::client
