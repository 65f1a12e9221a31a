// Text to token ids and back, in exact agreement with Hugging Face `tokenizers`. Immutable after
// loading: every method may be called from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace tidal {

struct EncodeOptions {
  // Add what the checkpoint's post-processor adds around a text (begin-of-sequence, as a rule).
  bool add_special_tokens = true;
  // Recognise special tokens written out in the text; otherwise they are encoded as ordinary text.
  bool parse_special_tokens = true;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // INVALID_ARGUMENT where `text` is not UTF-8, with the offset of the first bad byte.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                                      const EncodeOptions& options) const = 0;

  // The text of a whole token sequence, as Hugging Face's `decode`: bytes that are not UTF-8 become
  // U+FFFD. INVALID_ARGUMENT names an id outside 0..vocab_size() - 1.
  virtual absl::StatusOr<std::string> Decode(absl::Span<const int32_t> token_ids,
                                             bool skip_special_tokens) const = 0;

  // The bytes that one token adds in the middle of a text (they may be part of a code point). Empty
  // for ids without a token. Valid as long as the tokenizer.
  virtual std::string_view TokenBytes(int32_t token_id) const = 0;

  virtual bool IsSpecial(int32_t token_id) const = 0;

  // One more than the highest id; the model's vocabulary may be larger (padding rows).
  virtual int32_t vocab_size() const = 0;

  virtual std::optional<int32_t> TokenToId(std::string_view token) const = 0;
};

// Loads `directory`'s tokenizer.json, or else its tokenizer.model (SentencePiece).
// NOT_FOUND where neither exists; INVALID_ARGUMENT names what in the file is wrong or unsupported.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& directory);

}  // namespace tidal
