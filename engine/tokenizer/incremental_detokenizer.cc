#include "engine/tokenizer/incremental_detokenizer.h"

#include <string_view>
#include <utility>

#include "engine/tokenizer/utf8.h"

namespace tidal {

std::string IncrementalDetokenizer::Append(int32_t token_id) {
  if (skip_special_tokens_ && tokenizer_->IsSpecial(token_id)) return "";
  std::string bytes = std::move(held_bytes_);
  held_bytes_.clear();
  bytes += tokenizer_->TokenBytes(token_id);

  std::string text;
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const tokenization::Utf8Unit unit = tokenization::NextUtf8Unit(rest);
    if (unit.kind == tokenization::Utf8Kind::kTruncated) {
      held_bytes_ = rest;
      break;
    }
    text += unit.kind == tokenization::Utf8Kind::kCodePoint ? rest.substr(0, unit.size)
                                                            : tokenization::kReplacementCharacter;
    rest.remove_prefix(unit.size);
  }
  return text;
}

std::string IncrementalDetokenizer::Flush() {
  const std::string bytes = std::move(held_bytes_);
  held_bytes_.clear();
  return tokenization::ReplaceMalformedUtf8(bytes);
}

}  // namespace tidal
