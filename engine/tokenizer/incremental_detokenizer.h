// Turns generated tokens into text as they come, yielding only whole UTF-8 code points: bytes of an
// incomplete one are held back until it is complete or known to be malformed (then U+FFFD).
#pragma once

#include <cstdint>
#include <string>

#include "engine/tokenizer/tokenizer.h"

namespace tidal {

// One for each sequence. Not thread-safe.
class IncrementalDetokenizer {
 public:
  // `tokenizer` must outlive this object.
  IncrementalDetokenizer(const Tokenizer* tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

  // The text that `token_id` completes, possibly empty.
  std::string Append(int32_t token_id);

  // What is still held back, as U+FFFD where it is not a code point; to be called at the end.
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::string held_bytes_;  // an incomplete code point, at most 3 bytes
};

}  // namespace tidal
