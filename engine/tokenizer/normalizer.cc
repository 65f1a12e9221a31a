#include "engine/tokenizer/normalizer.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"

namespace tidal::tokenization {
namespace {

// A space becomes a three-byte "▁"; nothing real grows by more.
constexpr size_t kMaxGrowth = 16;
constexpr size_t kMinGrownBytes = 4096;

}  // namespace

size_t MaxGrownSize(size_t size) { return kMinGrownBytes + kMaxGrowth * size; }

absl::StatusOr<std::string> ReplaceAll(std::string_view text, const ReplaceStep& step,
                                       size_t max_size) {
  std::string result;
  result.reserve(text.size());
  for (size_t pos = 0;;) {
    const size_t found = text.find(step.pattern, pos);
    result += text.substr(pos, found - pos);
    if (found == std::string_view::npos) return result;
    result += step.content;
    pos = found + step.pattern.size();
    if (result.size() > max_size) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "replacing \"", step.pattern, "\" makes the text longer than ", max_size, " bytes"));
    }
  }
}

absl::StatusOr<std::string> Normalizer::Normalize(std::string_view text) const {
  std::string result(text);
  for (const Step& step : steps_) {
    if (const auto* prepend = std::get_if<PrependStep>(&step)) {
      if (!result.empty()) result.insert(0, prepend->prefix);
    } else {
      TIDAL_ASSIGN_OR_RETURN(
          result, ReplaceAll(result, std::get<ReplaceStep>(step), MaxGrownSize(text.size())));
    }
  }
  return result;
}

}  // namespace tidal::tokenization
