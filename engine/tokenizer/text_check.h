// What every text must meet before it is encoded. Pure function.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace tidal::tokenization {

// INVALID_ARGUMENT where `text` is longer than kMaxTextBytes, or is not UTF-8: then with the offset
// of the first bad byte.
absl::Status CheckText(std::string_view text);

}  // namespace tidal::tokenization
