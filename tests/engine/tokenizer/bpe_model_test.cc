#include "engine/tokenizer/bpe_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace tidal::tokenization {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

BpeModel MakeModel(const BpeOptions& options, const std::vector<std::string>& tokens,
                   const BpeModel::MergeList& merges) {
  Vocabulary vocabulary;
  for (const std::string& token : tokens) {
    vocabulary.emplace(token, static_cast<int32_t>(vocabulary.size()));
  }
  absl::StatusOr<BpeModel> model = BpeModel::Create(options, std::move(vocabulary), merges);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

std::vector<int32_t> Encode(const BpeModel& model, std::string_view piece) {
  std::vector<int32_t> ids;
  model.Encode(piece, &ids);
  return ids;
}

TEST(BpeModelTest, MergesByRankThenFromTheLeft) {
  const BpeModel model = MakeModel({}, {"a", "b", "ab", "aa", "aab"},
                                   {{"a", "b"}, {"a", "a"}, {"aa", "b"}, {"a", "ab"}});
  EXPECT_THAT(Encode(model, "aab"), ElementsAre(4));     // a ab -> aab
  EXPECT_THAT(Encode(model, "aaa"), ElementsAre(3, 0));  // the leftmost pair
  EXPECT_THAT(Encode(model, "aaaa"), ElementsAre(3, 3));
  EXPECT_THAT(Encode(model, "bab"), ElementsAre(1, 2));
}

TEST(BpeModelTest, FusesNeighbouringUnknownsOnlyIfAsked) {
  for (const bool fuses : {false, true}) {
    const BpeModel model = MakeModel({.fuse_unk = fuses, .unk_token = "?"}, {"?", "a"}, {});
    EXPECT_THAT(
        Encode(model, "xya"),
        fuses ? testing::Matcher<std::vector<int32_t>>(ElementsAre(0, 1)) : ElementsAre(0, 0, 1));
  }
}

TEST(BpeModelTest, DropsUnknownCharactersWithoutAnUnknownToken) {
  EXPECT_THAT(Encode(MakeModel({}, {"a"}, {}), "xaya"), ElementsAre(0, 0));
}

TEST(BpeModelTest, FallsBackToBytesOnlyIfAllOfThemHaveTokens) {
  const BpeModel model =
      MakeModel({.byte_fallback = true, .unk_token = "?"}, {"?", "a", "<0xC3>", "<0xA9>"}, {});
  EXPECT_THAT(Encode(model, "aé"), ElementsAre(1, 2, 3));
  EXPECT_THAT(Encode(model, "ü"), ElementsAre(0));
  // tokenizers emits a held unknown after the fallback of what follows it.
  EXPECT_THAT(Encode(model, "üéa"), ElementsAre(2, 3, 0, 1));
}

TEST(BpeModelTest, IgnoreMergesTakesAWholePiece) {
  const BpeModel with = MakeModel({.ignore_merges = true}, {"a", "b", "ab"}, {});
  EXPECT_THAT(Encode(with, "ab"), ElementsAre(2));
  EXPECT_THAT(Encode(with, "aba"), ElementsAre(0, 1, 0));
  EXPECT_THAT(Encode(MakeModel({}, {"a", "b", "ab"}, {}), "ab"), ElementsAre(0, 1));
}

TEST(BpeModelTest, ByteLevelLooksBytesUpByTheirCharacters) {
  // "Ġ" stands for a space, "Ã©" for the bytes of "é".
  const BpeModel model = MakeModel({.byte_level = true, .ignore_merges = true},
                                   {"Ġ", "a", "Ã", "©", "Ġa", "Ã©Ã©"}, {{"Ġ", "a"}});
  EXPECT_THAT(Encode(model, " aé"), ElementsAre(4, 2, 3));
  EXPECT_THAT(Encode(model, "éé"), ElementsAre(5));
}

TEST(BpeModelTest, RefusesMergesOutsideTheVocabulary) {
  const absl::StatusOr<BpeModel> model = BpeModel::Create({}, {{"a", 0}, {"b", 1}}, {{"a", "b"}});
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(model.status().ToString(), HasSubstr("merges[0]"));
}

TEST(BpeModelTest, RefusesAnUnknownTokenOutsideTheVocabulary) {
  const absl::StatusOr<BpeModel> model = BpeModel::Create({.unk_token = "<unk>"}, {{"a", 0}}, {});
  EXPECT_THAT(model.status().ToString(), HasSubstr("<unk>"));
}

// One million characters without a split: the work grows as n log n, so ten times the text may take
// little more than ten times the candidates. Quadratic work would take a hundred times.
TEST(BpeModelTest, LooksAtFewCandidatesInAVeryLongPiece) {
  std::vector<std::string> tokens = {"a"};
  BpeModel::MergeList merges;
  while (tokens.back().size() < 4096) {
    merges.emplace_back(tokens.back(), tokens.back());
    tokens.push_back(tokens.back() + tokens.back());
  }
  const BpeModel model = MakeModel({}, tokens, merges);
  std::vector<int32_t> ids;
  const int64_t few = model.Encode(std::string(100'000, 'a'), &ids);
  ids.clear();
  const int64_t many = model.Encode(std::string(1'000'000, 'a'), &ids);
  EXPECT_LT(many, 11 * few);
  EXPECT_LT(many, 4'000'000);
  EXPECT_EQ(ids.front(), 12);  // 4096 times "a"
  EXPECT_GE(ids.size(), 1'000'000u / 4096u);
}

}  // namespace
}  // namespace tidal::tokenization
