#include "engine/tokenizer/tokenizer_json.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/json/bounded_json.h"
#include "engine/tokenizer/bpe_tokenizer.h"
#include "engine/tokenizer/json_fields.h"
#include "engine/tokenizer/limits.h"
#include "engine/tokenizer/tokenizer_json_steps.h"

namespace tidal {
namespace tokenization {
namespace {

absl::StatusOr<AddedToken> ReadAddedToken(const JsonField& field) {
  TIDAL_RETURN_IF_ERROR(CheckMembers(
      field, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}));
  AddedToken token;
  TIDAL_ASSIGN_OR_RETURN(const int64_t id, ReadInt(field.Member("id"), kMaxTokenId));
  token.id = static_cast<int32_t>(id);
  TIDAL_ASSIGN_OR_RETURN(token.content, ReadString(field.Member("content"), kMaxAddedTokenBytes));
  TIDAL_ASSIGN_OR_RETURN(token.single_word, ReadBool(field.Member("single_word"), false));
  TIDAL_ASSIGN_OR_RETURN(token.lstrip, ReadBool(field.Member("lstrip"), false));
  TIDAL_ASSIGN_OR_RETURN(token.rstrip, ReadBool(field.Member("rstrip"), false));
  TIDAL_ASSIGN_OR_RETURN(token.special, ReadBool(field.Member("special"), false));
  TIDAL_ASSIGN_OR_RETURN(token.normalized, ReadBool(field.Member("normalized"), !token.special));
  return token;
}

absl::StatusOr<std::vector<AddedToken>> ReadAddedTokens(const JsonField& field) {
  std::vector<AddedToken> tokens;
  if (field.is_null()) return tokens;
  TIDAL_RETURN_IF_ERROR(CheckArray(field, kMaxTokenId + size_t{1}));
  for (size_t i = 0; i < field.value->size(); ++i) {
    TIDAL_ASSIGN_OR_RETURN(tokens.emplace_back(), ReadAddedToken(field.Element(i)));
  }
  return tokens;
}

absl::StatusOr<Vocabulary> ReadVocabulary(const JsonField& field) {
  if (!field.value->is_object()) return FieldError(field, "is not an object");
  if (field.value->empty()) return FieldError(field, "is empty");
  Vocabulary vocabulary;
  vocabulary.reserve(field.value->size());
  for (const auto& item : field.value->items()) {
    const JsonField id_field = {&item.value(), absl::StrCat(field.path, "[\"", item.key(), "\"]")};
    TIDAL_ASSIGN_OR_RETURN(const int64_t id, ReadInt(id_field, kMaxTokenId));
    vocabulary.emplace(item.key(), static_cast<int32_t>(id));
  }
  return vocabulary;
}

// A merge is ["a", "b"] or, in older files, "a b".
absl::StatusOr<std::pair<std::string, std::string>> ReadMerge(const JsonField& field) {
  const nlohmann::json& merge = *field.value;
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return std::make_pair(merge[0].get_ref<const std::string&>(),
                          merge[1].get_ref<const std::string&>());
  }
  if (merge.is_string()) {
    const std::string& text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return std::make_pair(text.substr(0, space), text.substr(space + 1));
    }
  }
  return FieldError(field, "is not a pair of tokens");
}

absl::StatusOr<BpeModel::MergeList> ReadMerges(const JsonField& field) {
  TIDAL_RETURN_IF_ERROR(CheckArray(field, kMaxJsonValues));
  BpeModel::MergeList merges;
  merges.reserve(field.value->size());
  for (size_t i = 0; i < field.value->size(); ++i) {
    const nlohmann::json& merge = (*field.value)[i];
    // The first line of GPT-2's merges.txt.
    if (merge.is_string() && merge.get_ref<const std::string&>().starts_with("#version")) continue;
    TIDAL_ASSIGN_OR_RETURN(merges.emplace_back(), ReadMerge(field.Element(i)));
  }
  return merges;
}

// Affixes that are written out but empty mean none.
absl::Status CheckNoAffix(const JsonField& field) {
  if (field.is_null()) return absl::OkStatus();
  if (field.value->is_string() && field.value->get_ref<const std::string&>().empty()) {
    return absl::OkStatus();
  }
  return FieldError(field, "is not supported");
}

absl::StatusOr<BpeModel> ReadModel(const JsonField& field, bool is_byte_level) {
  TIDAL_RETURN_IF_ERROR(CheckMembers(
      field, {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
              "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"}));
  if (!field.Member("type").is_null()) {
    TIDAL_ASSIGN_OR_RETURN(const std::string type, ReadType(field));
    if (type != "BPE") return FieldError(field, absl::StrCat("\"", type, "\" is not supported"));
  }
  const JsonField dropout = field.Member("dropout");
  if (!dropout.is_null() && !(dropout.value->is_number() && *dropout.value == 0)) {
    return FieldError(dropout, "is not supported: encoding must not be random");
  }
  TIDAL_RETURN_IF_ERROR(CheckNoAffix(field.Member("continuing_subword_prefix")));
  TIDAL_RETURN_IF_ERROR(CheckNoAffix(field.Member("end_of_word_suffix")));
  BpeOptions options;
  options.byte_level = is_byte_level;
  TIDAL_ASSIGN_OR_RETURN(options.fuse_unk, ReadBool(field.Member("fuse_unk"), false));
  TIDAL_ASSIGN_OR_RETURN(options.byte_fallback, ReadBool(field.Member("byte_fallback"), false));
  TIDAL_ASSIGN_OR_RETURN(options.ignore_merges, ReadBool(field.Member("ignore_merges"), false));
  if (const JsonField unk_token = field.Member("unk_token"); !unk_token.is_null()) {
    TIDAL_ASSIGN_OR_RETURN(options.unk_token, ReadString(unk_token, kMaxAddedTokenBytes));
  }
  TIDAL_ASSIGN_OR_RETURN(Vocabulary vocabulary, ReadVocabulary(field.Member("vocab")));
  TIDAL_ASSIGN_OR_RETURN(const BpeModel::MergeList merges, ReadMerges(field.Member("merges")));
  return BpeModel::Create(options, std::move(vocabulary), merges);
}

// What a post-processor adds around a text.
struct Template {
  std::vector<int32_t> prefix_ids;
  std::vector<int32_t> suffix_ids;
};

// The ids that one {"SpecialToken": {"id": ..}} of a template stands for.
absl::StatusOr<std::vector<int32_t>> ReadTemplateToken(const JsonField& piece,
                                                       const JsonField& special_tokens) {
  TIDAL_ASSIGN_OR_RETURN(const std::string name,
                         ReadString(piece.Member("id"), kMaxAddedTokenBytes));
  const JsonField token = special_tokens.Member(name);
  if (token.is_null()) return FieldError(token, "is missing, but the template names it");
  const JsonField ids = token.Member("ids");
  TIDAL_RETURN_IF_ERROR(CheckArray(ids, kMaxTemplateTokens));
  std::vector<int32_t> result;
  for (size_t i = 0; i < ids.value->size(); ++i) {
    TIDAL_ASSIGN_OR_RETURN(const int64_t id, ReadInt(ids.Element(i), kMaxTokenId));
    result.push_back(static_cast<int32_t>(id));
  }
  return result;
}

absl::StatusOr<Template> ReadTemplate(const JsonField& field) {
  TIDAL_RETURN_IF_ERROR(CheckMembers(field, {"type", "single", "pair", "special_tokens"}));
  const JsonField single = field.Member("single");
  TIDAL_RETURN_IF_ERROR(CheckArray(single, kMaxTemplateTokens));
  Template result;
  bool has_sequence = false;
  for (size_t i = 0; i < single.value->size(); ++i) {
    const JsonField piece = single.Element(i);
    TIDAL_RETURN_IF_ERROR(CheckMembers(piece, {"SpecialToken", "Sequence"}));
    const JsonField sequence = piece.Member("Sequence");
    if (!sequence.is_null()) {
      const nlohmann::json& id = *sequence.Member("id").value;
      if (has_sequence || !id.is_string() || id.get_ref<const std::string&>() != "A") {
        return FieldError(sequence, "is not the first and only sequence \"A\"");
      }
      has_sequence = true;
      continue;
    }
    TIDAL_ASSIGN_OR_RETURN(
        const std::vector<int32_t> ids,
        ReadTemplateToken(piece.Member("SpecialToken"), field.Member("special_tokens")));
    std::vector<int32_t>& side = has_sequence ? result.suffix_ids : result.prefix_ids;
    side.insert(side.end(), ids.begin(), ids.end());
  }
  if (!has_sequence) return FieldError(single, "has no place for the text");
  return result;
}

absl::Status ReadPostProcessor(const JsonField& field, std::optional<Template>* result) {
  if (field.is_null()) return absl::OkStatus();
  TIDAL_ASSIGN_OR_RETURN(const std::string type, ReadType(field));
  if (type == "ByteLevel") return absl::OkStatus();  // moves offsets only
  if (type == "TemplateProcessing") {
    if (*result) return FieldError(field, "is a second TemplateProcessing, which is not supported");
    TIDAL_ASSIGN_OR_RETURN(*result, ReadTemplate(field));
    return absl::OkStatus();
  }
  if (type != "Sequence") {
    return FieldError(field, absl::StrCat("\"", type, "\" is not supported"));
  }
  TIDAL_RETURN_IF_ERROR(CheckMembers(field, {"type", "processors"}));
  const JsonField processors = field.Member("processors");
  TIDAL_RETURN_IF_ERROR(CheckArray(processors, kMaxSteps));
  for (size_t i = 0; i < processors.value->size(); ++i) {
    TIDAL_RETURN_IF_ERROR(ReadPostProcessor(processors.Element(i), result));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> BuildTokenizer(const JsonField& root) {
  TIDAL_RETURN_IF_ERROR(
      CheckMembers(root, {"version", "truncation", "padding", "added_tokens", "normalizer",
                          "pre_tokenizer", "post_processor", "decoder", "model"}));
  if (const JsonField version = root.Member("version"); !version.is_null()) {
    TIDAL_ASSIGN_OR_RETURN(const std::string text, ReadString(version, kMaxLiteralBytes));
    if (text != "1.0") return FieldError(version, absl::StrCat("\"", text, "\" is not \"1.0\""));
  }
  TIDAL_ASSIGN_OR_RETURN(Normalizer normalizer, ReadNormalizer(root.Member("normalizer")));
  TIDAL_ASSIGN_OR_RETURN(PreTokenizer pre_tokenizer,
                         ReadPreTokenizer(root.Member("pre_tokenizer")));
  TIDAL_ASSIGN_OR_RETURN(TokenDecoder decoder, ReadDecoder(root.Member("decoder")));
  std::optional<Template> around;
  TIDAL_RETURN_IF_ERROR(ReadPostProcessor(root.Member("post_processor"), &around));
  TIDAL_ASSIGN_OR_RETURN(std::vector<AddedToken> added_tokens,
                         ReadAddedTokens(root.Member("added_tokens")));
  TIDAL_ASSIGN_OR_RETURN(BpeModel model,
                         ReadModel(root.Member("model"), pre_tokenizer.is_byte_level()));
  Template ids = std::move(around).value_or(Template());
  return BpeTokenizer::Create({.normalizer = std::move(normalizer),
                               .pre_tokenizer = std::move(pre_tokenizer),
                               .model = std::move(model),
                               .added_tokens = std::move(added_tokens),
                               .prefix_ids = std::move(ids.prefix_ids),
                               .suffix_ids = std::move(ids.suffix_ids),
                               .decoder = std::move(decoder)});
}

}  // namespace
}  // namespace tokenization

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizerJson(std::string_view json) {
  using tokenization::kMaxTokenizerFileBytes;
  if (json.size() > kMaxTokenizerFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer.json of ", json.size(), " bytes, at most ", kMaxTokenizerFileBytes, " allowed"));
  }
  const absl::StatusOr<nlohmann::json> parsed = ParseBoundedJson(json);
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      parsed.ok() ? tokenization::BuildTokenizer({&*parsed, ""})
                  : absl::StatusOr<std::unique_ptr<Tokenizer>>(parsed.status());
  if (tokenizer.ok()) return tokenizer;
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", tokenizer.status().message()));
}

}  // namespace tidal
