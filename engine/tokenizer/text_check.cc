#include "engine/tokenizer/text_check.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/limits.h"
#include "engine/tokenizer/utf8.h"

namespace tidal::tokenization {

absl::Status CheckText(std::string_view text) {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("text of ", text.size(), " bytes, at most ", kMaxTextBytes, " allowed"));
  }
  if (const std::optional<size_t> offset = FindMalformedUtf8(text)) {
    return absl::InvalidArgumentError(absl::StrCat("text is not UTF-8 at byte ", *offset));
  }
  return absl::OkStatus();
}

}  // namespace tidal::tokenization
