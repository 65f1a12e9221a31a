// From tokens back to text: the decoders of tokenizer.json, one after the other over a list of
// tokens. Immutable after construction; usable from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/normalizer.h"

namespace tidal::tokenization {

// All tokens' bytes in GPT-2's alphabet, as one text.
struct ByteLevelDecoding {};

// Runs of "<0x..>" become the text of their bytes, or one U+FFFD a byte where that is malformed.
struct ByteFallbackDecoding {};

// One token of all.
struct FuseDecoding {};

// Takes up to `start` times `content` (one code point) off the front of each token, `stop` times
// off its end.
struct StripDecoding {
  std::string content;
  size_t start = 0;
  size_t stop = 0;
};

// `replacement` becomes a space, or nothing in the first token where a prefix had been added.
struct MetaspaceDecoding {
  std::string replacement;
  bool drop_in_first_token = true;
};

class TokenDecoder {
 public:
  using Step = std::variant<ReplaceStep, ByteLevelDecoding, ByteFallbackDecoding, FuseDecoding,
                            StripDecoding, MetaspaceDecoding>;

  TokenDecoder() = default;
  explicit TokenDecoder(std::vector<Step> steps) : steps_(std::move(steps)) {}

  // The text of a whole sequence. RESOURCE_EXHAUSTED where a step makes a token too long.
  absl::StatusOr<std::string> Decode(std::vector<std::string> tokens) const;

  // The bytes that `token` adds in the middle of a text.
  absl::StatusOr<std::string> TokenBytes(std::string_view token) const;

 private:
  std::vector<Step> steps_;
};

}  // namespace tidal::tokenization
