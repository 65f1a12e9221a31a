#include "engine/tokenizer/byte_alphabet.h"

#include "engine/tokenizer/utf8.h"

namespace tidal::tokenization {
namespace {

constexpr char32_t kFirstExtraCharacter = 0x100;
constexpr size_t kNumExtraCharacters = 68;

struct Alphabet {
  std::array<std::string, 256> characters;
  std::array<uint8_t, kNumExtraCharacters> extra_bytes;  // of U+0100 + index
};

constexpr bool StandsForItself(uint32_t byte) {
  return ('!' <= byte && byte <= '~') || (0xA1 <= byte && byte <= 0xAC) || 0xAE <= byte;
}

Alphabet MakeAlphabet() {
  Alphabet alphabet;
  size_t num_extra = 0;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    char32_t character = byte;
    if (!StandsForItself(byte)) {
      character = kFirstExtraCharacter + static_cast<char32_t>(num_extra);
      alphabet.extra_bytes[num_extra++] = static_cast<uint8_t>(byte);
    }
    AppendUtf8(character, &alphabet.characters[byte]);
  }
  return alphabet;
}

const Alphabet& TheAlphabet() {
  static const Alphabet& alphabet = *new Alphabet(MakeAlphabet());
  return alphabet;
}

}  // namespace

const std::array<std::string, 256>& ByteCharacters() { return TheAlphabet().characters; }

std::optional<std::string> BytesOfByteLevelToken(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (size_t pos = 0; pos < token.size(); pos += Utf8SizeFromLead(token[pos])) {
    const char32_t character = DecodeUtf8(token.substr(pos));
    if (character < kFirstExtraCharacter && StandsForItself(character)) {
      bytes.push_back(static_cast<char>(character));
    } else if (kFirstExtraCharacter <= character &&
               character < kFirstExtraCharacter + kNumExtraCharacters) {
      bytes.push_back(
          static_cast<char>(TheAlphabet().extra_bytes[character - kFirstExtraCharacter]));
    } else {
      return std::nullopt;
    }
  }
  return bytes;
}

}  // namespace tidal::tokenization
