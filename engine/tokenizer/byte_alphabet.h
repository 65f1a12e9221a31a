// GPT-2's byte alphabet: each byte has a printable character that stands for it in a byte-level
// vocabulary (openai/gpt-2, src/encoder.py, bytes_to_unicode). Printable Latin-1 bytes stand for
// themselves, the other 68 are U+0100 onwards in order. Pure functions.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tidal::tokenization {

// The UTF-8 of each byte's character.
const std::array<std::string, 256>& ByteCharacters();

// The bytes that a byte-level token stands for; nullopt where a character is not in the alphabet.
// `token` is well-formed UTF-8.
std::optional<std::string> BytesOfByteLevelToken(std::string_view token);

}  // namespace tidal::tokenization
