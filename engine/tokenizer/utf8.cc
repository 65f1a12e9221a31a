#include "engine/tokenizer/utf8.h"

namespace tidal::tokenization {
namespace {

struct ByteRange {
  uint8_t first;
  uint8_t last;

  bool contains(uint8_t byte) const { return first <= byte && byte <= last; }
};

// What may follow a lead byte in second place; it excludes overlong forms and surrogates.
ByteRange SecondByteRange(uint8_t lead) {
  switch (lead) {
    case 0xE0:
      return {0xA0, 0xBF};
    case 0xED:
      return {0x80, 0x9F};
    case 0xF0:
      return {0x90, 0xBF};
    case 0xF4:
      return {0x80, 0x8F};
    default:
      return {0x80, 0xBF};
  }
}

size_t SequenceSize(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;  // a continuation byte, or an overlong form
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  if (lead < 0xF5) return 4;
  return 0;
}

}  // namespace

Utf8Unit NextUtf8Unit(std::string_view text) {
  const auto lead = static_cast<uint8_t>(text[0]);
  const size_t size = SequenceSize(lead);
  if (size == 0) return {Utf8Kind::kMalformed, 1};
  for (size_t i = 1; i < size; ++i) {
    if (i == text.size()) return {Utf8Kind::kTruncated, i};
    const ByteRange range = i == 1 ? SecondByteRange(lead) : ByteRange{0x80, 0xBF};
    if (!range.contains(static_cast<uint8_t>(text[i]))) return {Utf8Kind::kMalformed, i};
  }
  return {Utf8Kind::kCodePoint, size};
}

std::optional<size_t> FindMalformedUtf8(std::string_view text) {
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Unit unit = NextUtf8Unit(text.substr(pos));
    if (unit.kind != Utf8Kind::kCodePoint) return pos;
    pos += unit.size;
  }
  return std::nullopt;
}

std::string ReplaceMalformedUtf8(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Unit unit = NextUtf8Unit(text.substr(pos));
    result +=
        unit.kind == Utf8Kind::kCodePoint ? text.substr(pos, unit.size) : kReplacementCharacter;
    pos += unit.size;
  }
  return result;
}

size_t Utf8SizeFromLead(char lead) { return SequenceSize(static_cast<uint8_t>(lead)); }

char32_t DecodeUtf8(std::string_view text) {
  const auto byte = [&text](size_t i) {
    return static_cast<char32_t>(static_cast<uint8_t>(text[i]));
  };
  switch (Utf8SizeFromLead(text[0])) {
    case 1:
      return byte(0);
    case 2:
      return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
    case 3:
      return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    default:
      return (byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 |
             (byte(3) & 0x3F);
  }
}

void AppendUtf8(char32_t code_point, std::string* text) {
  const auto append = [text](char32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    append(code_point);
    return;
  }
  if (code_point < 0x800) {
    append(0xC0 | code_point >> 6);
  } else {
    if (code_point < 0x10000) {
      append(0xE0 | code_point >> 12);
    } else {
      append(0xF0 | code_point >> 18);
      append(0x80 | (code_point >> 12 & 0x3F));
    }
    append(0x80 | (code_point >> 6 & 0x3F));
  }
  append(0x80 | (code_point & 0x3F));
}

bool IsWhiteSpace(char32_t code_point) {
  switch (code_point) {
    case 0x20:
    case 0x85:
    case 0xA0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202F:
    case 0x205F:
    case 0x3000:
      return true;
    default:
      return (0x09 <= code_point && code_point <= 0x0D) ||
             (0x2000 <= code_point && code_point <= 0x200A);
  }
}

}  // namespace tidal::tokenization
