#include "engine/tokenizer/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/tokenizer/regex_syntax.h"

namespace tidal::tokenization {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// The sections of `text`; matches in brackets.
std::vector<std::string> Sections(const std::string& pattern, const std::string& text) {
  absl::StatusOr<Regex> regex = Regex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status();
  if (!regex.ok()) return {};
  RegexWorkspace workspace;
  std::vector<Section> sections;
  const absl::Status status = regex->Split(text, &workspace, &sections);
  EXPECT_TRUE(status.ok()) << status;
  std::vector<std::string> result;
  for (const Section& section : sections) {
    const std::string part = text.substr(section.begin, section.end - section.begin);
    result.push_back(section.is_match ? "[" + part + "]" : part);
  }
  return result;
}

TEST(RegexTest, CoversTheTextWithMatchesAndGaps) {
  EXPECT_THAT(Sections(R"(\p{N}{1,3})", "ab12345c"), ElementsAre("ab", "[123]", "[45]", "c"));
  EXPECT_THAT(Sections("x", ""), ElementsAre());
  EXPECT_THAT(Sections("x", "abc"), ElementsAre("abc"));
  EXPECT_THAT(Sections(R"(\s+(?!\S)|\s+)", "a   b"), ElementsAre("a", "[  ]", "[ ]", "b"));
}

// As Oniguruma's find_iter: an empty match counts unless it touches the match before it.
TEST(RegexTest, TreatsEmptyMatchesAsOnigurumaDoes) {
  EXPECT_THAT(Sections("x*", "axxé"), ElementsAre("[]", "a", "[xx]", "é", "[]"));
}

TEST(RegexTest, WhiteSpaceIsUnicodesOwn) {
  EXPECT_THAT(Sections(R"(\s)", "\u0085\u00a0\u2028\u3000"),
              ElementsAre("[\u0085]", "[\u00a0]", "[\u2028]", "[\u3000]"));
  EXPECT_THAT(Sections(R"(\s)", "\u180e\u200b"), ElementsAre("\u180e\u200b"));
  EXPECT_THAT(Sections(R"([^\s]+)", "a\u180eb c"), ElementsAre("[a\u180eb]", " ", "[c]"));
  EXPECT_THAT(Sections(R"([\S]+)", "a\u180eb c"), ElementsAre("[a\u180eb]", " ", "[c]"));
}

TEST(RegexTest, KnowsLettersAndNumbersOfUnicode16) {
  // CJK extension H, a Garay letter, a Garay digit.
  EXPECT_THAT(Sections(R"(\p{L}+)", "!\U00031350\U00010d4a!"),
              ElementsAre("!", "[\U00031350\U00010d4a]", "!"));
  EXPECT_THAT(Sections(R"(\p{N})", "\U00010d40"), ElementsAre("[\U00010d40]"));
  EXPECT_THAT(Sections(R"(\P{L}+)", "\U00031350-"), ElementsAre("\U00031350", "[-]"));
}

TEST(RegexTest, IgnoresCaseWhereThePatternSaysSo) {
  EXPECT_THAT(Sections("(?i:'s|'ll)x", "'Sx'LLx'sX"), ElementsAre("['Sx]", "['LLx]", "'sX"));
}

TEST(RegexTest, SpellsOutWhatPcreReadsDifferently) {
  EXPECT_EQ(*PcrePatternFromOniguruma(R"(\v)"), R"(\x{b})");
  EXPECT_EQ(*PcrePatternFromOniguruma("a{2}"), R"(\x{61}{2,2})");
  EXPECT_EQ(*PcrePatternFromOniguruma(R"(\p{Han})"), R"([\p{sc:Han}])");
  EXPECT_EQ(*PcrePatternFromOniguruma("(a)"), R"((?:\x{61}))");
  EXPECT_EQ(*PcrePatternFromOniguruma("[a-z\\-]"), R"([\x{61}-\x{7a}\x{2d}])");
}

TEST(RegexTest, RefusesWhatItCannotTranslate) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "bytes"},
      {std::string(kMaxPatternBytes + 1, 'a'), "4097 bytes"},
      {R"(\w+)", R"(\w)"},
      {R"(\bfoo)", R"(\b)"},
      {R"(\h)", R"(\h)"},
      {R"((a)\1)", R"(\1)"},
      {R"(\K)", R"(\K)"},
      {R"(\p{Greek})", R"(\p{Greek})"},
      {R"(\p{Cn})", R"(\p{Cn})"},
      {R"(\pL)", "without braces"},
      {R"([\P{L}])", "complement inside a class"},
      {"(?i)abc", "kind of group"},
      {"(?<name>a)", "kind of group"},
      {"(?m:a.b)", "kind of group"},
      {"(?i:ss)", "pair of letters"},
      {"(?i:straße)", "pair of letters"},
      {"(?i:é)", "beyond ASCII"},
      {R"((?i:\p{Lu}))", "cased property"},
      {"[a&&b]", "intersection"},
      {"[a[b]]", "class inside a class"},
      {"[]a]", "first member"},
      {"[z-a]", "this range"},
      {R"([\s-z])", "this range"},
      {"[a-b-c]", "hyphen"},
      {"[a", "does not end"},
      {"a{2,3}+", "+ or ?"},
      {"a{2}?", "+ or ?"},
      {"a{,3}", "this repeat"},
      {"a{3,2}", "this repeat"},
      {"a{1001}", "this repeat"},
      {"a{ 2}", "this repeat"},
      {"a{2", "{ without"},
      {"a**", "repeat of nothing"},
      {"*", "repeat of nothing"},
      {"(?=a)*", "repeat of nothing"},
      {"^a", "bare ^"},
      {"a$", "bare $"},
      {"a)", "without its ("},
      {"(a", "without its )"},
      {"a\\", "backslash at the end"},
      {R"(\x{110000})", "hexadecimal"},
      {R"(\x{d800})", "hexadecimal"},
      {R"(\x{0x41})", "hexadecimal"},
      {R"(\u12)", "hexadecimal"},
      {std::string(33, '(') + std::string(33, ')'), "nested groups"},
  };
  for (const auto& [pattern, message] : cases) {
    const absl::StatusOr<std::string> result = PcrePatternFromOniguruma(pattern);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument) << pattern;
    EXPECT_THAT(result.status().ToString(), HasSubstr(message)) << pattern;
  }
}

TEST(RegexTest, RefusesWhatPcreRefuses) {
  EXPECT_EQ(Regex::Compile("(?<=a*)b").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(RegexTest, StopsARunawayMatch) {
  absl::StatusOr<Regex> regex = Regex::Compile("(?:a+)+[bc]");
  ASSERT_TRUE(regex.ok()) << regex.status();
  RegexWorkspace workspace;
  std::vector<Section> sections;
  const absl::Status status = regex->Split(std::string(200, 'a'), &workspace, &sections);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.ToString(), HasSubstr("limit"));
}

TEST(RegexTest, MatchesLongRunsWithinItsLimits) {
  const std::string llama3 =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
      R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
  constexpr size_t kSize = 2'000'000;
  for (const char* unit : {"a", " ", "\n", "!", "é", "中"}) {
    std::string text;
    while (text.size() < kSize) text += unit;
    for (const char* end : {"", "x", " ", "\n"}) {
      EXPECT_GE(Sections(llama3, text + end).size(), 1u) << unit << end;
    }
  }
}

// A group that repeats needs stack for each turn; where JIT's runs out, the interpreter goes on.
TEST(RegexTest, SurvivesDeepBacktracking) {
  EXPECT_THAT(Sections("(?:ab|a(?=b)|[bc])+c", std::string(300'000, 'b') + "c").size(), 1u);
}

}  // namespace
}  // namespace tidal::tokenization
