// Rewrites a regular expression of Oniguruma's syntax, in which tokenizer files are written, into
// one of PCRE2's with the same meaning. Only constructs whose meaning is the same on both sides (or
// can be spelled out) are accepted; every other one is refused by name. Pure function.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace tidal::tokenization {

inline constexpr size_t kMaxPatternBytes = 4096;
inline constexpr int kMaxPatternRepeat = 1000;
inline constexpr size_t kMaxPatternDepth = 32;  // nested groups

// `pattern` is well-formed UTF-8. The result is to be compiled with PCRE2_UTF | PCRE2_UCP.
// INVALID_ARGUMENT names the construct and its byte offset.
absl::StatusOr<std::string> PcrePatternFromOniguruma(std::string_view pattern);

}  // namespace tidal::tokenization
