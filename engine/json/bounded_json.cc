#include "engine/json/bounded_json.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"

namespace tidal {
namespace {

// Bounds what parsing may allocate; malformed text is left to the parser.
absl::Status CheckJsonSize(std::string_view text) {
  size_t num_values = 1;
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    switch (text[i]) {
      case '"':
        in_string = !in_string;
        break;
      case '\\':
        i += in_string ? 1 : 0;
        break;
      case '[':
      case '{':
        if (!in_string && ++depth > kMaxJsonDepth) {
          return absl::InvalidArgumentError(
              absl::StrCat("JSON nested deeper than ", kMaxJsonDepth, " at byte ", i));
        }
        num_values += in_string ? 0 : 1;
        break;
      case ']':
      case '}':
        depth -= in_string ? 0 : 1;
        break;
      case ',':
      case ':':
        num_values += in_string ? 0 : 1;
        break;
      default:
        break;
    }
  }
  if (num_values > kMaxJsonValues) {
    return absl::InvalidArgumentError(
        absl::StrCat("JSON of ", num_values, " values, at most ", kMaxJsonValues, " allowed"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseBoundedJson(std::string_view text) {
  TIDAL_RETURN_IF_ERROR(CheckJsonSize(text));
  try {
    return nlohmann::json::parse(text.begin(), text.end());
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("malformed JSON: ", error.what()));
  }
}

}  // namespace tidal
