#include "engine/tokenizer/token_decoder.h"

#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "engine/backend/status_macros.h"
#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/string_map.h"
#include "engine/tokenizer/utf8.h"

namespace tidal::tokenization {
namespace {

using Tokens = std::vector<std::string>;

// The byte of a token "<0x..>".
std::optional<char> ParseByteToken(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with(">")) return std::nullopt;
  const auto is_digit = [&token](size_t i) {
    return absl::ascii_isxdigit(static_cast<unsigned char>(token[i]));
  };
  // Rust's parser allows a sign.
  if (!(is_digit(3) || token[3] == '+') || !is_digit(4)) return std::nullopt;
  const std::string_view digits = is_digit(3) ? token.substr(3, 2) : token.substr(4, 1);
  uint32_t byte = 0;
  if (!absl::SimpleHexAtoi(ToAbsl(digits), &byte)) return std::nullopt;
  return static_cast<char>(byte);
}

std::string StripToken(const StripDecoding& step, std::string_view token) {
  for (size_t i = 0; i < step.start && token.starts_with(step.content); ++i) {
    token.remove_prefix(step.content.size());
  }
  for (size_t i = 0; i < step.stop && token.ends_with(step.content); ++i) {
    token.remove_suffix(step.content.size());
  }
  return std::string(token);
}

absl::StatusOr<std::string> ReplaceInToken(const ReplaceStep& step, std::string_view token) {
  return ReplaceAll(token, step, MaxGrownSize(token.size()));
}

std::string ByteLevelBytes(std::string_view token) {
  return BytesOfByteLevelToken(token).value_or(std::string(token));
}

// The effect of each step on a whole sequence.
struct SequenceDecoding {
  Tokens tokens;

  absl::Status operator()(const ReplaceStep& step) {
    for (std::string& token : tokens) {
      TIDAL_ASSIGN_OR_RETURN(token, ReplaceInToken(step, token));
    }
    return absl::OkStatus();
  }

  absl::Status operator()(const ByteLevelDecoding&) {
    std::string bytes;
    for (const std::string& token : tokens) bytes += ByteLevelBytes(token);
    tokens = {ReplaceMalformedUtf8(bytes)};
    return absl::OkStatus();
  }

  absl::Status operator()(const ByteFallbackDecoding&) {
    Tokens decoded;
    std::string bytes;
    const auto flush = [&] {
      if (bytes.empty()) return;
      if (FindMalformedUtf8(bytes)) {
        decoded.insert(decoded.end(), bytes.size(), std::string(kReplacementCharacter));
      } else {
        decoded.push_back(bytes);
      }
      bytes.clear();
    };
    for (std::string& token : tokens) {
      if (const std::optional<char> byte = ParseByteToken(token)) {
        bytes.push_back(*byte);
      } else {
        flush();
        decoded.push_back(std::move(token));
      }
    }
    flush();
    tokens = std::move(decoded);
    return absl::OkStatus();
  }

  absl::Status operator()(const FuseDecoding&) {
    tokens = {absl::StrJoin(tokens, "")};
    return absl::OkStatus();
  }

  absl::Status operator()(const StripDecoding& step) {
    for (std::string& token : tokens) token = StripToken(step, token);
    return absl::OkStatus();
  }

  absl::Status operator()(const MetaspaceDecoding& step) {
    for (std::string& token : tokens) {
      const bool drops = step.drop_in_first_token && &token == tokens.data();
      TIDAL_ASSIGN_OR_RETURN(token, ReplaceInToken({step.replacement, drops ? "" : " "}, token));
    }
    return absl::OkStatus();
  }
};

// The effect of each step on a token between others. Steps after a fusion see the whole text, so
// that they no longer act on a single token.
struct TokenDecoding {
  std::string bytes;
  bool is_fused = false;

  absl::Status operator()(const ReplaceStep& step) {
    TIDAL_ASSIGN_OR_RETURN(bytes, ReplaceInToken(step, bytes));
    return absl::OkStatus();
  }
  absl::Status operator()(const ByteLevelDecoding&) {
    bytes = ByteLevelBytes(bytes);
    is_fused = true;
    return absl::OkStatus();
  }
  absl::Status operator()(const ByteFallbackDecoding&) {
    const std::optional<char> byte = ParseByteToken(bytes);
    if (byte) bytes.assign(1, *byte);
    return absl::OkStatus();
  }
  absl::Status operator()(const FuseDecoding&) {
    is_fused = true;
    return absl::OkStatus();
  }
  absl::Status operator()(const StripDecoding& step) {
    if (!is_fused) bytes = StripToken(step, bytes);
    return absl::OkStatus();
  }
  absl::Status operator()(const MetaspaceDecoding& step) {
    TIDAL_ASSIGN_OR_RETURN(bytes, ReplaceInToken({step.replacement, " "}, bytes));
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::string> TokenDecoder::Decode(std::vector<std::string> tokens) const {
  SequenceDecoding decoding = {std::move(tokens)};
  for (const Step& step : steps_) TIDAL_RETURN_IF_ERROR(std::visit(decoding, step));
  return absl::StrJoin(decoding.tokens, "");
}

absl::StatusOr<std::string> TokenDecoder::TokenBytes(std::string_view token) const {
  TokenDecoding decoding = {std::string(token)};
  for (const Step& step : steps_) TIDAL_RETURN_IF_ERROR(std::visit(decoding, step));
  return std::move(decoding.bytes);
}

}  // namespace tidal::tokenization
