// Checks of UTF-8 text (RFC 3629). Pure functions.
#pragma once

#include <cstddef>
#include <optional>

#include "absl/strings/string_view.h"

namespace tidal::client {

// Offset in bytes of the first byte that begins no valid code point: overlong forms, surrogates,
// values above U+10FFFF and truncated sequences are invalid. Nothing where all of `text` is valid.
std::optional<std::size_t> FindInvalidUtf8(absl::string_view text);

}  // namespace tidal::client
