// The tokenizer that a tokenizer.json describes: added tokens, normaliser, pre-tokeniser, BPE,
// post-processor and decoder. Immutable; usable from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/bpe_model.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/string_map.h"
#include "engine/tokenizer/string_table.h"
#include "engine/tokenizer/token_decoder.h"
#include "engine/tokenizer/tokenizer.h"

namespace tidal::tokenization {

struct TokenizerParts {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  BpeModel model;
  std::vector<AddedToken> added_tokens;
  std::vector<int32_t> prefix_ids;  // what the post-processor puts before a text, and after it
  std::vector<int32_t> suffix_ids;
  TokenDecoder decoder;
};

class BpeTokenizer : public Tokenizer {
 public:
  // INVALID_ARGUMENT where ids collide, exceed kMaxTokenId, or (prefix, suffix) do not exist.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(TokenizerParts parts);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options) const override;
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> token_ids,
                                     bool skip_special_tokens) const override;
  std::string_view TokenBytes(int32_t token_id) const override;
  bool IsSpecial(int32_t token_id) const override;
  int32_t vocab_size() const override { return static_cast<int32_t>(contents_.size()); }
  std::optional<int32_t> TokenToId(std::string_view token) const override;

 private:
  struct EncodeState;

  explicit BpeTokenizer(TokenizerParts parts);

  absl::Status PrepareAddedTokens(std::vector<std::optional<std::string>>* tokens);
  absl::Status EncodeStretch(const AddedTokenSplit& stretch, EncodeState* state) const;
  bool Exists(int32_t token_id) const;

  TokenizerParts parts_;
  StringMap<int32_t> added_ids_;
  AddedTokenMatcher raw_matcher_;         // tokens looked for in the text as it comes
  AddedTokenMatcher normalized_matcher_;  // and in the normalised text
  StringTable contents_;                  // by id: what the decoder starts from
  StringTable bytes_;                     // by id: TokenBytes
  std::vector<bool> exists_;
  std::vector<bool> is_special_;
};

}  // namespace tidal::tokenization
