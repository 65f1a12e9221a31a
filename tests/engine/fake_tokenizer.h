// A tokenizer whose token `i` is the i-th string it is given: tests choose where token borders
// fall.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/tokenizer/tokenizer.h"

namespace tidal {

class FakeTokenizer : public Tokenizer {
 public:
  // Tokens whose text begins with '<' are special.
  explicit FakeTokenizer(std::vector<std::string> tokens) : tokens_(std::move(tokens)) {}

  // Byte tokens 0..255.
  static FakeTokenizer OfBytes() {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
    FakeTokenizer tokenizer(std::move(tokens));
    tokenizer.has_special_tokens_ = false;
    return tokenizer;
  }

  // The longest token that fits, from left to right.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& /*options*/) const override {
    std::vector<int32_t> ids;
    while (!text.empty()) {
      int32_t best = -1;
      for (int32_t id = 0; id < vocab_size(); ++id) {
        const std::string& token = tokens_[static_cast<size_t>(id)];
        if (text.starts_with(token) && (best < 0 || token.size() > TokenBytes(best).size())) {
          best = id;
        }
      }
      if (best < 0) return absl::InvalidArgumentError("text has no tokens");
      ids.push_back(best);
      text.remove_prefix(TokenBytes(best).size());
    }
    return ids;
  }

  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> token_ids,
                                     bool skip_special_tokens) const override {
    std::string text;
    for (const int32_t id : token_ids) {
      if (!skip_special_tokens || !IsSpecial(id)) text += TokenBytes(id);
    }
    return text;
  }

  std::string_view TokenBytes(int32_t token_id) const override {
    if (token_id < 0 || token_id >= vocab_size()) return "";
    return tokens_[static_cast<size_t>(token_id)];
  }
  bool IsSpecial(int32_t token_id) const override {
    return has_special_tokens_ && TokenBytes(token_id).starts_with('<');
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(tokens_.size()); }
  std::optional<int32_t> TokenToId(std::string_view token) const override {
    const auto it = std::find(tokens_.begin(), tokens_.end(), token);
    if (it == tokens_.end()) return std::nullopt;
    return static_cast<int32_t>(it - tokens_.begin());
  }

 private:
  std::vector<std::string> tokens_;
  bool has_special_tokens_ = true;
};

}  // namespace tidal
