// Parses JSON of unknown origin: how deep it nests and how many values it holds is bounded before
// anything is allocated for it. Pure function; nothing throws.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/status/statusor.h"

namespace tidal {

// Far above any real file: Llama-3's tokenizer.json nests 5 deep and holds 1.1 million values.
inline constexpr int kMaxJsonDepth = 32;
inline constexpr size_t kMaxJsonValues = size_t{4} << 20;

// INVALID_ARGUMENT: malformed (with the byte), not UTF-8, a number beyond a double's range, nested
// deeper than kMaxJsonDepth, or more than kMaxJsonValues values.
absl::StatusOr<nlohmann::json> ParseBoundedJson(std::string_view text);

}  // namespace tidal
