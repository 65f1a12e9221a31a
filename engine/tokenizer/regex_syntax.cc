#include "engine/tokenizer/regex_syntax.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/backend/status_macros.h"
#include "engine/tokenizer/string_map.h"
#include "engine/tokenizer/unicode_additions.h"
#include "engine/tokenizer/utf8.h"

namespace tidal::tokenization {
namespace {

// Unicode's White_Space and its complement, as members of a class. PCRE2's own \s adds U+180E.
constexpr std::string_view kWhiteSpaceMembers =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNonWhiteSpaceMembers =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff})"
    R"(\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";

constexpr auto kGeneralCategories = std::to_array<std::string_view>(
    {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",
     "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po",
     "S",  "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "Cc", "Cf"});
constexpr auto kScripts =
    std::to_array<std::string_view>({"Han", "Hiragana", "Katakana", "Hangul"});
// What a single character may fold to, so that Oniguruma would match it with two letters.
constexpr auto kTwoLetterFolds = std::to_array<std::string_view>({"ss", "st", "ff", "fi", "fl"});

bool Contains(const auto& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// One element: a character, or a set of them (\s, \p{L}) spelled as members of a PCRE2 class.
struct Element {
  std::optional<char32_t> character;
  std::string members;
  bool is_complement = false;  // the set is all but the members
};

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Run();

 private:
  struct Group {
    bool ignores_case;
    bool is_assertion;
  };

  bool AtEnd() const { return pos_ == pattern_.size(); }
  bool LooksAt(std::string_view text) const { return pattern_.substr(pos_).starts_with(text); }
  bool Take(std::string_view text) {
    if (!LooksAt(text)) return false;
    pos_ += text.size();
    return true;
  }
  absl::Status Refuse(std::string_view construct) const {
    return absl::InvalidArgumentError(absl::StrFormat(
        "regular expression: %s is not supported (byte %d of \"%s\")", construct, pos_, pattern_));
  }
  bool ignores_case() const { return !groups_.empty() && groups_.back().ignores_case; }

  absl::Status TranslateOne();
  absl::Status OpenGroup();
  absl::Status CloseGroup();
  absl::Status TranslateQuantifier();
  absl::Status TranslateBraces();
  absl::Status TranslateClass();
  absl::Status CheckCase(char32_t character) const;
  absl::StatusOr<Element> TakeElement();
  absl::StatusOr<Element> TakeEscape();
  absl::StatusOr<Element> TakeProperty(bool negated);
  absl::StatusOr<Element> TakeHexCharacter(std::string_view digits);

  std::string_view pattern_;
  size_t pos_ = 0;
  std::string out_;
  std::vector<Group> groups_;
  bool can_repeat_ = false;          // the last thing emitted can take a quantifier
  char32_t previous_character_ = 0;  // of the same alternative, since the last set; 0 = none
};

std::string Spell(char32_t character) {
  return absl::StrFormat("\\x{%x}", static_cast<uint32_t>(character));
}

Element DecimalDigits(bool is_complement) {
  return {std::nullopt, "\\p{Nd}" + UnicodeAdditions("Nd"), is_complement};
}

absl::StatusOr<Element> Translator::TakeHexCharacter(std::string_view digits) {
  const bool is_number = std::all_of(digits.begin(), digits.end(), absl::ascii_isxdigit);
  uint32_t value = 0;
  if (!is_number || digits.size() > 6 || !absl::SimpleHexAtoi(ToAbsl(digits), &value) ||
      value > 0x10FFFF || (0xD800 <= value && value < 0xE000)) {
    return Refuse("this hexadecimal escape");
  }
  return Element{value, "", false};
}

absl::StatusOr<Element> Translator::TakeProperty(bool negated) {
  const size_t close = pattern_.find('}', pos_);
  if (!Take("{") || close == std::string_view::npos) return Refuse("a property without braces");
  if (Take("^")) negated = !negated;
  const std::string_view name = pattern_.substr(pos_, close - pos_);
  const bool is_script = Contains(kScripts, name);
  if (!is_script && !Contains(kGeneralCategories, name)) {
    return Refuse(absl::StrCat("\\p{", ToAbsl(name), "}"));
  }
  if (ignores_case() && (name == "Lu" || name == "Ll" || name == "Lt")) {
    return Refuse("a cased property under (?i:");
  }
  pos_ = close + 1;
  return Element{std::nullopt,
                 absl::StrCat(is_script ? "\\p{sc:" : "\\p{", ToAbsl(name), "}",
                              is_script ? "" : UnicodeAdditions(name)),
                 negated};
}

// After the backslash.
absl::StatusOr<Element> Translator::TakeEscape() {
  if (AtEnd()) return Refuse("a backslash at the end");
  const char c = pattern_[pos_];
  constexpr std::string_view kControlNames = "tnvfrae";
  constexpr std::string_view kControls = "\t\n\v\f\r\a\x1b";
  if (const size_t i = kControlNames.find(c); i != std::string_view::npos) {
    ++pos_;
    return Element{static_cast<char32_t>(kControls[i]), "", false};
  }
  if (absl::ascii_ispunct(c)) {
    ++pos_;
    return Element{static_cast<char32_t>(c), "", false};
  }
  if (Take("s")) return Element{std::nullopt, std::string(kWhiteSpaceMembers), false};
  if (Take("S")) return Element{std::nullopt, std::string(kNonWhiteSpaceMembers), false};
  if (Take("d")) return DecimalDigits(false);
  if (Take("D")) return DecimalDigits(true);
  if (Take("p")) return TakeProperty(false);
  if (Take("P")) return TakeProperty(true);
  if (Take("u")) {
    const std::string_view digits = pattern_.substr(pos_, 4);
    pos_ += digits.size();
    return TakeHexCharacter(digits.size() == 4 ? digits : "");
  }
  if (Take("x{")) {
    const std::string_view digits = pattern_.substr(pos_, pattern_.find('}', pos_) - pos_);
    pos_ = std::min(pattern_.size(), pos_ + digits.size() + 1);
    return TakeHexCharacter(digits);
  }
  return Refuse(absl::StrCat("\\", ToAbsl(pattern_.substr(pos_, Utf8SizeFromLead(c)))));
}

// A character or an escape; the caller has looked for everything that has a meaning of its own.
absl::StatusOr<Element> Translator::TakeElement() {
  if (Take("\\")) return TakeEscape();
  const std::string_view rest = pattern_.substr(pos_);
  pos_ += Utf8SizeFromLead(rest[0]);
  return Element{DecodeUtf8(rest), "", false};
}

absl::Status Translator::TranslateClass() {
  out_ += Take("^") ? "[^" : "[";
  bool is_first = true;
  for (; !LooksAt("]") || is_first; is_first = false) {
    if (AtEnd()) return Refuse("a class that does not end");
    if (is_first && LooksAt("]")) return Refuse("] as the first member of a class");
    if (LooksAt("[")) return Refuse("a class inside a class");
    if (LooksAt("&&")) return Refuse("an intersection of classes");
    const bool is_hyphen = LooksAt("-");
    if (is_hyphen && !is_first && !LooksAt("-]")) return Refuse("a hyphen inside a class");
    TIDAL_ASSIGN_OR_RETURN(const Element first, TakeElement());
    if (first.is_complement) return Refuse("a complement inside a class");
    if (ignores_case() && first.character.value_or(0) >= 0x80) {
      return Refuse("a character beyond ASCII under (?i:");
    }
    out_ += first.character ? Spell(*first.character) : first.members;
    if (is_hyphen || !LooksAt("-") || LooksAt("-]")) continue;
    ++pos_;
    if (AtEnd() || !first.character) return Refuse("this range");
    if (LooksAt("[") || LooksAt("-")) return Refuse("this range");
    TIDAL_ASSIGN_OR_RETURN(const Element last, TakeElement());
    if (!last.character || *last.character < *first.character) return Refuse("this range");
    if (ignores_case() && *last.character >= 0x80) return Refuse("this range under (?i:");
    absl::StrAppend(&out_, "-", Spell(*last.character));
  }
  ++pos_;
  out_ += "]";
  can_repeat_ = true;
  return absl::OkStatus();
}

absl::Status Translator::OpenGroup() {
  if (groups_.size() == kMaxPatternDepth) {
    return Refuse(absl::StrCat("more than ", kMaxPatternDepth, " nested groups"));
  }
  Group group = {ignores_case(), false};
  if (Take("?:") || !LooksAt("?")) {
    out_ += "(?:";  // nothing refers back to a captured group
  } else if (Take("?i:")) {
    group.ignores_case = true;
    out_ += "(?i:";
  } else if (Take("?>")) {
    out_ += "(?>";
  } else {
    group.is_assertion = true;
    constexpr auto kAssertions = std::to_array<std::string_view>({"?=", "?!", "?<=", "?<!"});
    const auto it = std::find_if(kAssertions.begin(), kAssertions.end(),
                                 [this](std::string_view start) { return Take(start); });
    if (it == kAssertions.end()) return Refuse("this kind of group");
    absl::StrAppend(&out_, "(", ToAbsl(*it));
  }
  groups_.push_back(group);
  can_repeat_ = false;
  return absl::OkStatus();
}

absl::Status Translator::CloseGroup() {
  if (groups_.empty()) return Refuse("a ) without its (");
  can_repeat_ = !groups_.back().is_assertion;
  groups_.pop_back();
  out_ += ")";
  return absl::OkStatus();
}

// A repeat's bound: digits only, up to kMaxPatternRepeat.
std::optional<int> ParseBound(std::string_view digits) {
  int bound = 0;
  if (!std::all_of(digits.begin(), digits.end(), absl::ascii_isdigit)) return std::nullopt;
  if (!absl::SimpleAtoi(ToAbsl(digits), &bound) || bound > kMaxPatternRepeat) return std::nullopt;
  return bound;
}

// {n}, {n,} or {n,m}, after the opening brace.
absl::Status Translator::TranslateBraces() {
  const size_t close = pattern_.find('}', pos_);
  if (close == std::string_view::npos) return Refuse("{ without its }");
  const std::string_view bounds = pattern_.substr(pos_, close - pos_);
  const size_t comma = bounds.find(',');
  const bool is_exact = comma == std::string_view::npos;
  const bool is_open = !is_exact && comma + 1 == bounds.size();
  const std::optional<int> low = ParseBound(bounds.substr(0, comma));
  const std::optional<int> high = is_exact || is_open ? low : ParseBound(bounds.substr(comma + 1));
  if (!low || !high || *high < *low) return Refuse("this repeat");
  pos_ = close + 1;
  // Oniguruma reads {n,m}+ as a repeat of the repeat, and {n}? as an optional one.
  if (LooksAt("+") || (LooksAt("?") && is_exact)) return Refuse("a + or ? after this repeat");
  out_ += is_open ? absl::StrFormat("{%d,}", *low) : absl::StrFormat("{%d,%d}", *low, *high);
  if (Take("?")) out_ += "?";
  return absl::OkStatus();
}

absl::Status Translator::TranslateQuantifier() {
  if (!can_repeat_) return Refuse("a repeat of nothing, of a repeat or of an assertion");
  can_repeat_ = false;
  if (Take("{")) return TranslateBraces();
  out_ += pattern_[pos_++];
  if (Take("?")) {
    out_ += "?";
  } else if (Take("+")) {
    out_ += "+";
  }
  return absl::OkStatus();
}

absl::Status Translator::CheckCase(char32_t character) const {
  if (!ignores_case()) return absl::OkStatus();
  if (character >= 0x80) return Refuse("a character beyond ASCII under (?i:");
  if (previous_character_ >= 0x80) return absl::OkStatus();
  const std::string pair = {absl::ascii_tolower(static_cast<unsigned char>(previous_character_)),
                            absl::ascii_tolower(static_cast<unsigned char>(character))};
  if (Contains(kTwoLetterFolds, pair)) return Refuse("this pair of letters under (?i:");
  return absl::OkStatus();
}

absl::Status Translator::TranslateOne() {
  constexpr std::string_view kQuantifiers = "*+?{";
  constexpr std::string_view kRefused = "^$]}";
  const char c = pattern_[pos_];
  if (kQuantifiers.find(c) != std::string_view::npos) return TranslateQuantifier();
  if (kRefused.find(c) != std::string_view::npos) {
    return Refuse(absl::StrCat("a bare ", ToAbsl(pattern_.substr(pos_, 1))));
  }
  if (Take("(")) return OpenGroup();
  if (Take(")")) return CloseGroup();
  char32_t character = 0;
  if (Take("[")) {
    TIDAL_RETURN_IF_ERROR(TranslateClass());
  } else if (Take("|")) {
    out_ += "|";
  } else if (Take(".")) {
    out_ += "[^\\n]";
  } else {
    TIDAL_ASSIGN_OR_RETURN(const Element element, TakeElement());
    character = element.character.value_or(0);
    if (element.character) TIDAL_RETURN_IF_ERROR(CheckCase(character));
    out_ += element.character
                ? Spell(character)
                : absl::StrCat(element.is_complement ? "[^" : "[", element.members, "]");
  }
  previous_character_ = character;
  can_repeat_ = c != '|';
  return absl::OkStatus();
}

absl::StatusOr<std::string> Translator::Run() {
  if (pattern_.empty() || pattern_.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "regular expression of %d bytes, must be 1 to %d", pattern_.size(), kMaxPatternBytes));
  }
  while (!AtEnd()) {
    TIDAL_RETURN_IF_ERROR(TranslateOne());
  }
  if (!groups_.empty()) return Refuse("a ( without its )");
  return std::move(out_);
}

}  // namespace

absl::StatusOr<std::string> PcrePatternFromOniguruma(std::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace tidal::tokenization
