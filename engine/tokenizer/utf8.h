// UTF-8 as Unicode's Table 3-7 defines it: overlong forms, surrogates and code points above
// U+10FFFF are malformed. Malformed bytes are replaced by the "maximal subpart" practice, as Rust's
// from_utf8_lossy does. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tidal::tokenization {

enum class Utf8Kind : uint8_t {
  kCodePoint,  // a whole code point
  kMalformed,  // a maximal subpart: one U+FFFD
  kTruncated,  // the start of a code point that ends with the text
};

struct Utf8Unit {
  Utf8Kind kind;
  size_t size;  // bytes, 1..4
};

// U+FFFD.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// The first unit of `text`, which is not empty.
Utf8Unit NextUtf8Unit(std::string_view text);

// The offset of the first byte that is not part of a code point.
std::optional<size_t> FindMalformedUtf8(std::string_view text);

// `text` with one U+FFFD for each malformed or truncated unit.
std::string ReplaceMalformedUtf8(std::string_view text);

// Bytes of the code point that starts with `lead`, for text known to be well-formed.
size_t Utf8SizeFromLead(char lead);

// The first code point of well-formed, non-empty text.
char32_t DecodeUtf8(std::string_view text);

// `code_point` is a Unicode scalar value.
void AppendUtf8(char32_t code_point, std::string* text);

// Unicode's White_Space property.
bool IsWhiteSpace(char32_t code_point);

}  // namespace tidal::tokenization
