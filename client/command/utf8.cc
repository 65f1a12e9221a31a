#include "client/command/utf8.h"

#include <cstdint>

namespace tidal::client {
namespace {

struct LeadByte {
  std::size_t num_bytes;  // of the whole sequence; 0 = no lead byte
  uint32_t bits;          // of the code point
  uint32_t minimum;       // a smaller code point is overlong
};

LeadByte Classify(unsigned char byte) {
  if (byte < 0x80) return {1, byte, 0};
  if (byte >= 0xC2 && byte < 0xE0) return {2, byte & 0x1FU, 0x80};
  if (byte >= 0xE0 && byte < 0xF0) return {3, byte & 0x0FU, 0x800};
  if (byte >= 0xF0 && byte < 0xF5) return {4, byte & 0x07U, 0x10000};
  return {0, 0, 0};
}

// Length in bytes of the code point at the start of `text`, which is not empty; 0 = invalid.
std::size_t CodePointLength(absl::string_view text) {
  const LeadByte lead = Classify(static_cast<unsigned char>(text[0]));
  if (lead.num_bytes == 0 || lead.num_bytes > text.size()) return 0;
  uint32_t code_point = lead.bits;
  for (std::size_t i = 1; i < lead.num_bytes; ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if ((byte & 0xC0U) != 0x80U) return 0;
    code_point = (code_point << 6U) | (byte & 0x3FU);
  }
  const bool is_surrogate = code_point >= 0xD800 && code_point < 0xE000;
  if (code_point < lead.minimum || code_point > 0x10FFFF || is_surrogate) return 0;
  return lead.num_bytes;
}

}  // namespace

std::optional<std::size_t> FindInvalidUtf8(absl::string_view text) {
  for (std::size_t offset = 0; offset < text.size();) {
    const std::size_t length = CodePointLength(text.substr(offset));
    if (length == 0) return offset;
    offset += length;
  }
  return std::nullopt;
}

}  // namespace tidal::client
