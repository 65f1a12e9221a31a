#include "engine/tokenizer/tokenizer_json_steps.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/tokenizer/limits.h"
#include "engine/tokenizer/regex_syntax.h"
#include "engine/tokenizer/string_map.h"
#include "engine/tokenizer/utf8.h"

namespace tidal::tokenization {
namespace {

// openai/gpt-2, src/encoder.py.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// Rust's char::is_numeric, which knows the numbers of Unicode 17.0.
constexpr std::string_view kDigitPattern = R"([\p{N}\x{11de0}-\x{11de9}\x{16ff4}-\x{16ff6}])";
constexpr size_t kMaxNameBytes = 256;

absl::Status UnknownType(const JsonField& field, std::string_view type) {
  return FieldError(field, absl::StrCat("\"", ToAbsl(type), "\" is not supported"));
}

// Calls `read_step` for the component, or for each one of a Sequence, which lists its steps under
// `list_name`.
template <typename Step, typename ReadStep>
absl::Status ReadSteps(const JsonField& field, std::string_view list_name, ReadStep read_step,
                       std::vector<Step>* steps) {
  if (field.is_null()) return absl::OkStatus();
  TIDAL_ASSIGN_OR_RETURN(const std::string type, ReadType(field));
  if (type != "Sequence") {
    if (steps->size() == kMaxSteps) {
      return FieldError(field, absl::StrCat("is one of more than ", kMaxSteps, " steps"));
    }
    TIDAL_ASSIGN_OR_RETURN(Step step, read_step(field, type));
    steps->push_back(std::move(step));
    return absl::OkStatus();
  }
  TIDAL_RETURN_IF_ERROR(CheckMembers(field, {"type", list_name}));
  const JsonField list = field.Member(list_name);
  TIDAL_RETURN_IF_ERROR(CheckArray(list, kMaxSteps));
  for (size_t i = 0; i < list.value->size(); ++i) {
    if (list.Element(i).is_null()) return FieldError(list.Element(i), "is null");
    // The depth of the file is bounded, and with it the recursion.
    TIDAL_RETURN_IF_ERROR(ReadSteps(list.Element(i), list_name, read_step, steps));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadLiteral(const JsonField& field) {
  TIDAL_ASSIGN_OR_RETURN(std::string literal, ReadString(field, kMaxLiteralBytes));
  if (literal.empty()) return FieldError(field, "is empty");
  return literal;
}

absl::StatusOr<std::string> ReadCharacter(const JsonField& field) {
  TIDAL_ASSIGN_OR_RETURN(std::string text, ReadLiteral(field));
  if (Utf8SizeFromLead(text[0]) != text.size()) return FieldError(field, "is not one character");
  return text;
}

absl::StatusOr<ReplaceStep> ReadReplace(const JsonField& field) {
  TIDAL_RETURN_IF_ERROR(CheckMembers(field, {"type", "pattern", "content"}));
  const JsonField pattern = field.Member("pattern");
  TIDAL_RETURN_IF_ERROR(CheckMembers(pattern, {"String"}));
  ReplaceStep step;
  TIDAL_ASSIGN_OR_RETURN(step.pattern, ReadLiteral(pattern.Member("String")));
  TIDAL_ASSIGN_OR_RETURN(step.content, ReadString(field.Member("content"), kMaxLiteralBytes));
  return step;
}

absl::StatusOr<Normalizer::Step> ReadNormalizerStep(const JsonField& field,
                                                    const std::string& type) {
  if (type == "Replace") return ReadReplace(field);
  if (type != "Prepend") return UnknownType(field, type);
  TIDAL_RETURN_IF_ERROR(CheckMembers(field, {"type", "prepend"}));
  PrependStep step;
  TIDAL_ASSIGN_OR_RETURN(step.prefix, ReadString(field.Member("prepend"), kMaxLiteralBytes));
  return step;
}

absl::StatusOr<SplitBehavior> ReadSplitBehavior(const JsonField& field) {
  constexpr auto kBehaviors = std::to_array<std::pair<std::string_view, SplitBehavior>>({
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous},
  });
  TIDAL_ASSIGN_OR_RETURN(const std::string name, ReadString(field, kMaxNameBytes));
  for (const auto& [known_name, behavior] : kBehaviors) {
    if (name == known_name) return behavior;
  }
  return UnknownType(field, name);
}

absl::StatusOr<PreTokenizer::Step> ReadSplit(const JsonField& field) {
  TIDAL_RETURN_IF_ERROR(CheckMembers(field, {"type", "pattern", "behavior", "invert"}));
  const JsonField pattern = field.Member("pattern");
  TIDAL_RETURN_IF_ERROR(CheckMembers(pattern, {"Regex", "String"}));
  SplitStep step;
  if (const JsonField regex_field = pattern.Member("Regex"); !regex_field.is_null()) {
    TIDAL_ASSIGN_OR_RETURN(const std::string source, ReadString(regex_field, kMaxPatternBytes));
    absl::StatusOr<Regex> regex = Regex::Compile(source);
    if (!regex.ok()) return FieldError(regex_field, std::string(regex.status().message()));
    step.pattern = *std::move(regex);
  } else {
    TIDAL_ASSIGN_OR_RETURN(step.pattern, ReadLiteral(pattern.Member("String")));
  }
  TIDAL_ASSIGN_OR_RETURN(step.behavior, ReadSplitBehavior(field.Member("behavior")));
  TIDAL_ASSIGN_OR_RETURN(step.invert, ReadBool(field.Member("invert"), false));
  return step;
}

absl::StatusOr<PreTokenizer::Step> ReadDigits(const JsonField& field) {
  TIDAL_RETURN_IF_ERROR(CheckMembers(field, {"type", "individual_digits"}));
  TIDAL_ASSIGN_OR_RETURN(const bool individual, ReadBool(field.Member("individual_digits"), false));
  SplitStep step;
  TIDAL_ASSIGN_OR_RETURN(step.pattern, Regex::Compile(kDigitPattern));
  step.behavior = individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous;
  return step;
}

absl::StatusOr<PreTokenizer::Step> ReadByteLevel(const JsonField& field) {
  TIDAL_RETURN_IF_ERROR(
      CheckMembers(field, {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  ByteLevelStep step;
  TIDAL_ASSIGN_OR_RETURN(step.add_prefix_space,
                         ReadBool(field.Member("add_prefix_space"), std::nullopt));
  TIDAL_ASSIGN_OR_RETURN(const bool use_regex, ReadBool(field.Member("use_regex"), true));
  if (use_regex) {
    TIDAL_ASSIGN_OR_RETURN(step.pattern, Regex::Compile(kGpt2Pattern));
  }
  return step;
}

absl::StatusOr<PrependScheme> ReadPrependScheme(const JsonField& field) {
  // Older files say add_prefix_space only.
  TIDAL_ASSIGN_OR_RETURN(const bool adds_prefix, ReadBool(field.Member("add_prefix_space"), true));
  const JsonField scheme = field.Member("prepend_scheme");
  if (scheme.is_null()) return adds_prefix ? PrependScheme::kAlways : PrependScheme::kNever;
  TIDAL_ASSIGN_OR_RETURN(const std::string name, ReadString(scheme, kMaxNameBytes));
  if (name == "never") return PrependScheme::kNever;
  if (!adds_prefix) return FieldError(scheme, "contradicts add_prefix_space");
  if (name == "always") return PrependScheme::kAlways;
  if (name == "first") return PrependScheme::kFirst;
  return UnknownType(scheme, name);
}

absl::StatusOr<MetaspaceStep> ReadMetaspace(const JsonField& field) {
  TIDAL_RETURN_IF_ERROR(CheckMembers(
      field, {"type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"}));
  MetaspaceStep step;
  TIDAL_ASSIGN_OR_RETURN(step.replacement, ReadCharacter(field.Member("replacement")));
  TIDAL_ASSIGN_OR_RETURN(step.prepend_scheme, ReadPrependScheme(field));
  TIDAL_ASSIGN_OR_RETURN(step.split, ReadBool(field.Member("split"), true));
  return step;
}

absl::StatusOr<PreTokenizer::Step> ReadPreTokenizerStep(const JsonField& field,
                                                        const std::string& type) {
  if (type == "Split") return ReadSplit(field);
  if (type == "Digits") return ReadDigits(field);
  if (type == "ByteLevel") return ReadByteLevel(field);
  if (type == "Metaspace") return ReadMetaspace(field);
  return UnknownType(field, type);
}

absl::StatusOr<TokenDecoder::Step> ReadStrip(const JsonField& field) {
  TIDAL_RETURN_IF_ERROR(CheckMembers(field, {"type", "content", "start", "stop"}));
  StripDecoding step;
  TIDAL_ASSIGN_OR_RETURN(step.content, ReadCharacter(field.Member("content")));
  TIDAL_ASSIGN_OR_RETURN(const int64_t start, ReadInt(field.Member("start"), kMaxLiteralBytes));
  TIDAL_ASSIGN_OR_RETURN(const int64_t stop, ReadInt(field.Member("stop"), kMaxLiteralBytes));
  step.start = static_cast<size_t>(start);
  step.stop = static_cast<size_t>(stop);
  return step;
}

absl::StatusOr<TokenDecoder::Step> ReadDecoderStep(const JsonField& field,
                                                   const std::string& type) {
  if (type == "Replace") return ReadReplace(field);
  if (type == "Strip") return ReadStrip(field);
  if (type == "Metaspace") {
    TIDAL_ASSIGN_OR_RETURN(const MetaspaceStep step, ReadMetaspace(field));
    return MetaspaceDecoding{step.replacement, step.prepend_scheme != PrependScheme::kNever};
  }
  if (type == "ByteLevel") {
    TIDAL_RETURN_IF_ERROR(
        CheckMembers(field, {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
    return ByteLevelDecoding{};
  }
  if (type != "ByteFallback" && type != "Fuse") return UnknownType(field, type);
  TIDAL_RETURN_IF_ERROR(CheckMembers(field, {"type"}));
  if (type == "Fuse") return FuseDecoding{};
  return ByteFallbackDecoding{};
}

}  // namespace

absl::StatusOr<std::string> ReadType(const JsonField& field) {
  if (!field.value->is_object()) return FieldError(field, "is not an object");
  return ReadString(field.Member("type"), kMaxNameBytes);
}

absl::StatusOr<Normalizer> ReadNormalizer(const JsonField& field) {
  std::vector<Normalizer::Step> steps;
  TIDAL_RETURN_IF_ERROR(ReadSteps(field, "normalizers", ReadNormalizerStep, &steps));
  return Normalizer(std::move(steps));
}

absl::StatusOr<PreTokenizer> ReadPreTokenizer(const JsonField& field) {
  std::vector<PreTokenizer::Step> steps;
  TIDAL_RETURN_IF_ERROR(ReadSteps(field, "pretokenizers", ReadPreTokenizerStep, &steps));
  for (size_t i = 0; i + 1 < steps.size(); ++i) {
    if (std::holds_alternative<ByteLevelStep>(steps[i])) {
      return FieldError(field, "has ByteLevel before its last step, which is not supported");
    }
  }
  return PreTokenizer(std::move(steps));
}

absl::StatusOr<TokenDecoder> ReadDecoder(const JsonField& field) {
  if (field.is_null()) return FieldError(field, "null is not supported");
  std::vector<TokenDecoder::Step> steps;
  TIDAL_RETURN_IF_ERROR(ReadSteps(field, "decoders", ReadDecoderStep, &steps));
  return TokenDecoder(std::move(steps));
}

}  // namespace tidal::tokenization
