#include "engine/tokenizer/sentencepiece_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/backend/status_macros.h"
#include "engine/json/bounded_json.h"
#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/json_fields.h"
#include "engine/tokenizer/limits.h"
#include "engine/tokenizer/sentencepiece_model.h"
#include "engine/tokenizer/string_map.h"
#include "engine/tokenizer/string_table.h"
#include "engine/tokenizer/text_check.h"
#include "engine/tokenizer/token_decoder.h"

namespace tidal::tokenization {
namespace {

constexpr std::string_view kSpaceSymbol = "\u2581";

std::string ReplaceSpaceSymbols(std::string_view text) {
  return absl::StrReplaceAll(ToAbsl(text), {{ToAbsl(kSpaceSymbol), " "}});
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const SentencePieceOptions& options) : options_(options) {}

  absl::Status Load(std::string model);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options) const override;
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> token_ids,
                                     bool skip_special_tokens) const override;
  std::string_view TokenBytes(int32_t token_id) const override {
    return IsId(token_id) ? bytes_[token_id] : std::string_view();
  }
  bool IsSpecial(int32_t token_id) const override {
    return std::find(special_ids_.begin(), special_ids_.end(), token_id) != special_ids_.end();
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(bytes_.size()); }
  std::optional<int32_t> TokenToId(std::string_view token) const override;

 private:
  bool IsId(int32_t id) const { return 0 <= id && id < vocab_size(); }
  absl::Status AddSpecialToken(const std::string& token, int32_t* id);
  std::string BytesOfPiece(int32_t id) const;
  void EncodeStretch(std::string_view text, std::vector<int32_t>* token_ids) const;

  SentencePieceOptions options_;
  SentencePieceModel model_;
  AddedTokenMatcher special_matcher_;
  StringTable bytes_;  // by id
  std::vector<int32_t> special_ids_;
  int32_t bos_id_ = -1;
  int32_t eos_id_ = -1;
  int32_t unk_id_ = -1;
  size_t num_unk_pieces_ = 0;  // that the text of the unknown token has
};

// What the piece adds in the middle of a text.
std::string SentencePieceTokenizer::BytesOfPiece(int32_t id) const {
  const std::string& piece = model_.PieceOf(id);
  if (IsSpecial(id)) return piece;
  if (model_.IsControl(id)) return "";
  if (model_.IsByte(id)) {
    static const TokenDecoder& decoder = *new TokenDecoder({ByteFallbackDecoding{}});
    return decoder.TokenBytes(piece).value_or("");
  }
  return ReplaceSpaceSymbols(piece);
}

absl::Status SentencePieceTokenizer::AddSpecialToken(const std::string& token, int32_t* id) {
  const std::optional<int32_t> found = model_.IdOf(token);
  if (!found) {
    return absl::InvalidArgumentError(
        absl::StrCat("the token \"", token, "\" of tokenizer_config.json is not in the model"));
  }
  *id = *found;
  if (IsSpecial(*id)) return absl::OkStatus();
  special_ids_.push_back(*id);
  return special_matcher_.Add({.id = *id, .content = token, .special = true}, token);
}

absl::Status SentencePieceTokenizer::Load(std::string model) {
  // ModelProto { normalizer_spec = 3: NormalizerSpec { add_dummy_prefix = 3: false } }; a message
  // that appears twice is merged.
  if (!options_.legacy) model += std::string_view("\x1a\x02\x18\x00", 4);
  TIDAL_RETURN_IF_ERROR(model_.Load(model));
  const int32_t num_pieces = model_.num_pieces();
  if (num_pieces < 1 || num_pieces > kMaxTokenId + 1) {
    return absl::InvalidArgumentError(absl::StrCat("SentencePiece model of ", num_pieces,
                                                   " pieces, must be 1 to ", kMaxTokenId + 1));
  }
  TIDAL_RETURN_IF_ERROR(AddSpecialToken(options_.unk_token, &unk_id_));
  TIDAL_RETURN_IF_ERROR(AddSpecialToken(options_.bos_token, &bos_id_));
  TIDAL_RETURN_IF_ERROR(AddSpecialToken(options_.eos_token, &eos_id_));
  for (int id = 0; id < num_pieces; ++id) bytes_.Append(BytesOfPiece(id));

  std::vector<int32_t> unk_pieces;
  model_.Encode(options_.unk_token, &unk_pieces);
  num_unk_pieces_ = unk_pieces.size();
  return absl::OkStatus();
}

// Appends the pieces of a text without special tokens. SentencePiece strips leading spaces once it
// adds no prefix itself; so, as LlamaTokenizer does, such a text is encoded behind the unknown
// token's text, whose pieces are then dropped.
void SentencePieceTokenizer::EncodeStretch(std::string_view text,
                                           std::vector<int32_t>* token_ids) const {
  const bool is_guarded =
      !options_.legacy && (text.starts_with(kSpaceSymbol) || text.starts_with(' '));
  const std::string guarded_text =
      is_guarded ? options_.unk_token + std::string(text) : std::string();
  std::vector<int32_t> pieces;
  model_.Encode(is_guarded ? guarded_text : text, &pieces);
  const size_t num_dropped = is_guarded && pieces.size() >= num_unk_pieces_ ? num_unk_pieces_ : 0;
  token_ids->insert(token_ids->end(), pieces.begin() + static_cast<ptrdiff_t>(num_dropped),
                    pieces.end());
}

absl::StatusOr<std::vector<int32_t>> SentencePieceTokenizer::Encode(
    std::string_view text, const EncodeOptions& options) const {
  TIDAL_RETURN_IF_ERROR(CheckText(text));
  std::string prefixed_text;
  if (!options_.legacy && !text.empty()) {
    if (options_.add_prefix_space) prefixed_text = kSpaceSymbol;
    prefixed_text += ReplaceSpaceSymbols(text);
    text = prefixed_text;
  }
  std::vector<int32_t> token_ids;
  for (const AddedTokenSplit& split : special_matcher_.Split(text, options.parse_special_tokens)) {
    if (split.token != nullptr) {
      token_ids.push_back(split.token->id);
    } else {
      EncodeStretch(split.text, &token_ids);
    }
  }
  // The prefix of a text that starts with a special token.
  if (!options_.legacy && token_ids.size() > 1 && IsSpecial(token_ids[1]) &&
      model_.PieceOf(token_ids[0]) == kSpaceSymbol) {
    token_ids.erase(token_ids.begin());
  }
  if (!options.add_special_tokens) return token_ids;
  if (options_.add_bos_token) token_ids.insert(token_ids.begin(), bos_id_);
  if (options_.add_eos_token) token_ids.push_back(eos_id_);
  return token_ids;
}

// LlamaTokenizer.convert_tokens_to_string.
absl::StatusOr<std::string> SentencePieceTokenizer::Decode(absl::Span<const int32_t> token_ids,
                                                           bool skip_special_tokens) const {
  std::string text;
  std::vector<std::string> pieces;  // since the last special token
  bool is_after_special = false;
  size_t index = 0;  // among those not skipped
  for (const int32_t id : token_ids) {
    if (!IsId(id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, ", must be 0 to ", vocab_size() - 1));
    }
    const bool is_special = IsSpecial(id);
    if (is_special && skip_special_tokens) continue;
    std::string_view piece = model_.PieceOf(id);
    if (is_special) {
      if (!is_after_special && index != 0 && options_.legacy) text += " ";
      text += model_.Decode(pieces);
      text += piece;
      pieces.clear();
    } else {
      const bool has_space = piece.starts_with(kSpaceSymbol);
      if (index == 0 && has_space && options_.add_prefix_space) {
        piece.remove_prefix(kSpaceSymbol.size());
      }
      if (index == 1 && is_after_special && !has_space && options_.add_prefix_space) text += " ";
      pieces.emplace_back(piece);
    }
    is_after_special = is_special;
    ++index;
  }
  return text + model_.Decode(pieces);
}

std::optional<int32_t> SentencePieceTokenizer::TokenToId(std::string_view token) const {
  return model_.IdOf(token);
}

// A token's name is a string, or an object with "content".
absl::Status ReadTokenName(const JsonField& field, std::string* name) {
  if (field.is_null()) return absl::OkStatus();
  const JsonField content = field.value->is_object() ? field.Member("content") : field;
  TIDAL_ASSIGN_OR_RETURN(*name, ReadString(content, kMaxAddedTokenBytes));
  if (name->empty()) return FieldError(content, "is empty");
  return absl::OkStatus();
}

absl::Status CheckAddsNoTokens(const JsonField& added_tokens, const SentencePieceOptions& options) {
  if (added_tokens.is_null()) return absl::OkStatus();
  if (!added_tokens.value->is_object()) return FieldError(added_tokens, "is not an object");
  for (const auto& item : added_tokens.value->items()) {
    const JsonField token = added_tokens.Member(item.key());
    TIDAL_ASSIGN_OR_RETURN(const std::string content,
                           ReadString(token.Member("content"), kMaxAddedTokenBytes));
    if (content != options.bos_token && content != options.eos_token &&
        content != options.unk_token) {
      return FieldError(token, absl::StrCat("adds \"", content,
                                            "\", which needs a tokenizer.json to be supported"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SentencePieceOptions> ReadSentencePieceOptions(std::string_view json) {
  TIDAL_ASSIGN_OR_RETURN(const nlohmann::json parsed, ParseBoundedJson(json));
  const JsonField root = {&parsed, ""};
  SentencePieceOptions options;
  TIDAL_ASSIGN_OR_RETURN(options.add_bos_token, ReadBool(root.Member("add_bos_token"), true));
  TIDAL_ASSIGN_OR_RETURN(options.add_eos_token, ReadBool(root.Member("add_eos_token"), false));
  TIDAL_ASSIGN_OR_RETURN(options.add_prefix_space, ReadBool(root.Member("add_prefix_space"), true));
  TIDAL_ASSIGN_OR_RETURN(options.legacy, ReadBool(root.Member("legacy"), true));
  TIDAL_RETURN_IF_ERROR(ReadTokenName(root.Member("bos_token"), &options.bos_token));
  TIDAL_RETURN_IF_ERROR(ReadTokenName(root.Member("eos_token"), &options.eos_token));
  TIDAL_RETURN_IF_ERROR(ReadTokenName(root.Member("unk_token"), &options.unk_token));
  TIDAL_RETURN_IF_ERROR(CheckAddsNoTokens(root.Member("added_tokens_decoder"), options));
  return options;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseSentencePieceModel(
    std::string model, const SentencePieceOptions& options) {
  auto tokenizer = std::make_unique<SentencePieceTokenizer>(options);
  TIDAL_RETURN_IF_ERROR(tokenizer->Load(std::move(model)));
  return tokenizer;
}

}  // namespace tidal::tokenization
