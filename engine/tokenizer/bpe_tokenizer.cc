#include "engine/tokenizer/bpe_tokenizer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/tokenizer/limits.h"
#include "engine/tokenizer/text_check.h"

namespace tidal::tokenization {
namespace {

absl::Status CheckTokenId(std::string_view token, int32_t id) {
  if (0 <= id && id <= kMaxTokenId) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("token \"", ToAbsl(token), "\" has the id ", id,
                                                 ", must be 0 to ", kMaxTokenId));
}

// Puts a token at its id. False where another one is there.
bool Place(std::string token, int32_t id, std::vector<std::optional<std::string>>* tokens) {
  if (tokens->size() <= static_cast<size_t>(id)) tokens->resize(static_cast<size_t>(id) + 1);
  std::optional<std::string>& place = (*tokens)[id];
  if (place) return false;
  place = std::move(token);
  return true;
}

}  // namespace

struct BpeTokenizer::EncodeState {
  bool parse_special = true;
  PieceArena arena;
  std::vector<std::string_view> pieces;
  std::vector<int32_t> token_ids;
};

BpeTokenizer::BpeTokenizer(TokenizerParts parts) : parts_(std::move(parts)) {}

// Registers each added token for matching, and puts it into `tokens` in the form that the decoder
// takes: normalised where it is looked for in normalised text.
absl::Status BpeTokenizer::PrepareAddedTokens(std::vector<std::optional<std::string>>* tokens) {
  for (const AddedToken& token : parts_.added_tokens) {
    TIDAL_RETURN_IF_ERROR(CheckTokenId(token.content, token.id));
    const auto in_model = parts_.model.vocabulary().find(token.content);
    const bool is_in_model = in_model != parts_.model.vocabulary().end();
    if (is_in_model && in_model->second != token.id) {
      return absl::InvalidArgumentError(absl::StrCat("added token \"", token.content,
                                                     "\" has the id ", token.id,
                                                     ", but in model.vocab ", in_model->second));
    }
    std::string pattern = token.content;
    if (token.normalized) {
      TIDAL_ASSIGN_OR_RETURN(pattern, parts_.normalizer.Normalize(token.content));
    }
    if (pattern.empty() || pattern.size() > kMaxAddedTokenBytes) {
      return absl::InvalidArgumentError(absl::StrCat("added token with the id ", token.id, " has ",
                                                     pattern.size(), " bytes, must be 1 to ",
                                                     kMaxAddedTokenBytes));
    }
    if (is_in_model) (*tokens)[token.id].reset();
    if (!Place(pattern, token.id, tokens)) {
      return absl::InvalidArgumentError(
          absl::StrCat("two tokens have the id ", token.id, ", one is \"", token.content, "\""));
    }
    if (!added_ids_.emplace(token.content, token.id).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("added token \"", token.content, "\" is there twice"));
    }
    AddedTokenMatcher& matcher = token.normalized ? normalized_matcher_ : raw_matcher_;
    TIDAL_RETURN_IF_ERROR(matcher.Add(token, pattern));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> BpeTokenizer::Create(TokenizerParts parts) {
  std::unique_ptr<BpeTokenizer> tokenizer(new BpeTokenizer(std::move(parts)));
  std::vector<std::optional<std::string>> tokens;
  for (const auto& [token, id] : tokenizer->parts_.model.vocabulary()) {
    TIDAL_RETURN_IF_ERROR(CheckTokenId(token, id));
    if (!Place(token, id, &tokens)) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.vocab: two tokens have the id ", id, ", one is \"", token, "\""));
    }
  }
  TIDAL_RETURN_IF_ERROR(tokenizer->PrepareAddedTokens(&tokens));
  for (const std::optional<std::string>& token : tokens) {
    TIDAL_ASSIGN_OR_RETURN(const std::string bytes,
                           tokenizer->parts_.decoder.TokenBytes(token.value_or("")));
    tokenizer->exists_.push_back(token.has_value());
    tokenizer->contents_.Append(token.value_or(""));
    tokenizer->bytes_.Append(bytes);
  }
  tokenizer->is_special_.resize(tokens.size());
  for (const AddedToken& token : tokenizer->parts_.added_tokens) {
    tokenizer->is_special_[token.id] = token.special;
  }
  for (const auto* ids : {&tokenizer->parts_.prefix_ids, &tokenizer->parts_.suffix_ids}) {
    for (const int32_t id : *ids) {
      if (!tokenizer->Exists(id)) {
        return absl::InvalidArgumentError(
            absl::StrCat("post_processor adds the id ", id, ", which no token has"));
      }
    }
  }
  return tokenizer;
}

absl::Status BpeTokenizer::EncodeStretch(const AddedTokenSplit& stretch, EncodeState* state) const {
  TIDAL_ASSIGN_OR_RETURN(const std::string normalized, parts_.normalizer.Normalize(stretch.text));
  for (const AddedTokenSplit& split : normalized_matcher_.Split(normalized, state->parse_special)) {
    if (split.token != nullptr) {
      state->token_ids.push_back(split.token->id);
      continue;
    }
    const bool is_text_start = stretch.begin == 0 && split.begin == 0;
    TIDAL_RETURN_IF_ERROR(
        parts_.pre_tokenizer.Split(split.text, is_text_start, &state->arena, &state->pieces));
    for (const std::string_view piece : state->pieces) {
      parts_.model.Encode(piece, &state->token_ids);
    }
    state->arena.texts.clear();
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> BpeTokenizer::Encode(std::string_view text,
                                                          const EncodeOptions& options) const {
  TIDAL_RETURN_IF_ERROR(CheckText(text));
  EncodeState state;
  state.parse_special = options.parse_special_tokens;
  if (options.add_special_tokens) state.token_ids = parts_.prefix_ids;
  for (const AddedTokenSplit& split : raw_matcher_.Split(text, options.parse_special_tokens)) {
    if (split.token != nullptr) {
      state.token_ids.push_back(split.token->id);
    } else {
      TIDAL_RETURN_IF_ERROR(EncodeStretch(split, &state));
    }
  }
  if (options.add_special_tokens) {
    state.token_ids.insert(state.token_ids.end(), parts_.suffix_ids.begin(),
                           parts_.suffix_ids.end());
  }
  return std::move(state.token_ids);
}

bool BpeTokenizer::Exists(int32_t token_id) const {
  return 0 <= token_id && token_id < vocab_size() && exists_[token_id];
}

absl::StatusOr<std::string> BpeTokenizer::Decode(absl::Span<const int32_t> token_ids,
                                                 bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  tokens.reserve(token_ids.size());
  for (const int32_t id : token_ids) {
    if (id < 0 || id >= vocab_size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, ", must be 0 to ", vocab_size() - 1));
    }
    if (!exists_[id] || (skip_special_tokens && is_special_[id])) continue;
    tokens.emplace_back(contents_[id]);
  }
  return parts_.decoder.Decode(std::move(tokens));
}

std::string_view BpeTokenizer::TokenBytes(int32_t token_id) const {
  return Exists(token_id) ? bytes_[token_id] : std::string_view();
}

bool BpeTokenizer::IsSpecial(int32_t token_id) const {
  return Exists(token_id) && is_special_[token_id];
}

std::optional<int32_t> BpeTokenizer::TokenToId(std::string_view token) const {
  if (const auto it = added_ids_.find(token); it != added_ids_.end()) return it->second;
  const auto it = parts_.model.vocabulary().find(token);
  if (it == parts_.model.vocabulary().end()) return std::nullopt;
  return it->second;
}

}  // namespace tidal::tokenization
