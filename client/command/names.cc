#include "client/command/names.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;

// PREFIX_NAME -> name; an unknown value, whose name is empty, -> its number.
std::string WithoutPrefix(absl::string_view full_name, absl::string_view prefix, int value) {
  if (full_name.empty()) return absl::StrCat(value);
  return absl::AsciiStrToLower(absl::StripPrefix(full_name, prefix));
}

}  // namespace

std::string AttentionModeName(v1::AttentionMode mode) {
  return WithoutPrefix(v1::AttentionMode_Name(mode), "ATTENTION_MODE_", mode);
}

absl::StatusOr<v1::AttentionMode> ParseAttentionMode(absl::string_view name) {
  for (const auto mode :
       {v1::ATTENTION_MODE_FULL, v1::ATTENTION_MODE_TIDAL, v1::ATTENTION_MODE_QUEST}) {
    if (name == AttentionModeName(mode)) return mode;
  }
  return absl::InvalidArgumentError("it must be full, tidal or quest");
}

std::string SelectionScopeName(v1::SelectionScope scope) {
  return WithoutPrefix(v1::SelectionScope_Name(scope), "SELECTION_SCOPE_", scope);
}

std::string FinishReasonName(v1::FinishReason reason) {
  return WithoutPrefix(v1::FinishReason_Name(reason), "FINISH_REASON_", reason);
}

}  // namespace tidal::client
