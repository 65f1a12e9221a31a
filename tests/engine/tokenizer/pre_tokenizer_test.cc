#include "engine/tokenizer/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tidal::tokenization {
namespace {

using testing::ElementsAre;

SplitStep LiteralSplit(std::string literal, SplitBehavior behavior, bool invert = false) {
  SplitStep step;
  step.pattern = std::move(literal);
  step.behavior = behavior;
  step.invert = invert;
  return step;
}

template <typename Step>
std::vector<std::string> Pieces(Step step, std::string_view text, bool is_text_start = true) {
  std::vector<PreTokenizer::Step> steps;
  steps.emplace_back(std::move(step));
  const PreTokenizer pre_tokenizer(std::move(steps));
  PieceArena arena;
  std::vector<std::string_view> pieces;
  const absl::Status status = pre_tokenizer.Split(text, is_text_start, &arena, &pieces);
  EXPECT_TRUE(status.ok()) << status;
  return {pieces.begin(), pieces.end()};
}

// The example of tokenizers' own NormalizedString::split.
TEST(PreTokenizerTest, SplitsByEachBehavior) {
  const std::string text = "The-final--countdown";
  const auto split = [&](SplitBehavior behavior) {
    return Pieces(LiteralSplit("-", behavior), text);
  };
  EXPECT_THAT(split(SplitBehavior::kRemoved), ElementsAre("The", "final", "countdown"));
  EXPECT_THAT(split(SplitBehavior::kIsolated),
              ElementsAre("The", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(split(SplitBehavior::kMergedWithPrevious),
              ElementsAre("The-", "final-", "-", "countdown"));
  EXPECT_THAT(split(SplitBehavior::kMergedWithNext),
              ElementsAre("The", "-final", "-", "-countdown"));
  EXPECT_THAT(split(SplitBehavior::kContiguous),
              ElementsAre("The", "-", "final", "--", "countdown"));
}

TEST(PreTokenizerTest, InvertKeepsOnlyTheMatches) {
  EXPECT_THAT(Pieces(LiteralSplit("ab", SplitBehavior::kRemoved, true), "xabyabz"),
              ElementsAre("ab", "ab"));
}

TEST(PreTokenizerTest, MetaspacePrependsByItsScheme) {
  const auto pieces = [](PrependScheme scheme, bool is_text_start, std::string_view text) {
    return Pieces(MetaspaceStep{"_", scheme, false}, text, is_text_start);
  };
  EXPECT_THAT(pieces(PrependScheme::kFirst, true, "a b"), ElementsAre("_a_b"));
  EXPECT_THAT(pieces(PrependScheme::kFirst, false, "a b"), ElementsAre("a_b"));
  EXPECT_THAT(pieces(PrependScheme::kAlways, false, "a b"), ElementsAre("_a_b"));
  EXPECT_THAT(pieces(PrependScheme::kNever, true, "a b"), ElementsAre("a_b"));
  EXPECT_THAT(pieces(PrependScheme::kAlways, true, " a"), ElementsAre("_a"));
}

TEST(PreTokenizerTest, MetaspaceSplitsBeforeEachReplacement) {
  EXPECT_THAT(Pieces(MetaspaceStep{"_", PrependScheme::kAlways, true}, "a  b"),
              ElementsAre("_a", "_", "_b"));
}

TEST(PreTokenizerTest, ByteLevelAddsAPrefixSpaceOnce) {
  EXPECT_THAT(Pieces(ByteLevelStep{true, std::nullopt}, "ab"), ElementsAre(" ab"));
  EXPECT_THAT(Pieces(ByteLevelStep{true, std::nullopt}, " ab"), ElementsAre(" ab"));
}

TEST(PreTokenizerTest, OnlyTheFirstPieceIsTheStartOfTheText) {
  std::vector<PreTokenizer::Step> steps;
  steps.emplace_back(LiteralSplit("|", SplitBehavior::kRemoved));
  steps.emplace_back(MetaspaceStep{"_", PrependScheme::kFirst, false});
  const PreTokenizer pre_tokenizer(std::move(steps));
  PieceArena arena;
  std::vector<std::string_view> pieces;
  ASSERT_TRUE(pre_tokenizer.Split("a|b", true, &arena, &pieces).ok());
  EXPECT_THAT(pieces, ElementsAre("_a", "b"));
}

}  // namespace
}  // namespace tidal::tokenization
