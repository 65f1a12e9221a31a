#include "engine/tokenizer/incremental_detokenizer.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "engine/tokenizer/utf8.h"
#include "tests/engine/tokenizer/fixtures.h"

namespace tidal {
namespace {

constexpr char kReplacement[] = "\uFFFD";

// Tokens 0..255 are the bytes; 256 is special; the rest are those given.
class ByteTokenizer : public Tokenizer {
 public:
  explicit ByteTokenizer(const std::vector<std::string>& more = {}) {
    for (int byte = 0; byte < 256; ++byte) tokens_.emplace_back(1, static_cast<char>(byte));
    tokens_.emplace_back("<special>");
    tokens_.insert(tokens_.end(), more.begin(), more.end());
  }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view,
                                              const EncodeOptions&) const override {
    std::abort();
  }
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t>, bool) const override {
    std::abort();
  }
  std::string_view TokenBytes(int32_t id) const override {
    return 0 <= id && id < vocab_size() ? std::string_view(tokens_[id]) : "";
  }
  bool IsSpecial(int32_t id) const override { return id == 256; }
  int32_t vocab_size() const override { return static_cast<int32_t>(tokens_.size()); }
  std::optional<int32_t> TokenToId(std::string_view) const override { std::abort(); }

 private:
  std::vector<std::string> tokens_;
};

std::vector<std::string> AppendBytes(IncrementalDetokenizer* detokenizer, std::string_view bytes) {
  std::vector<std::string> parts;
  for (const char byte : bytes) parts.push_back(detokenizer->Append(static_cast<uint8_t>(byte)));
  return parts;
}

TEST(IncrementalDetokenizerTest, HoldsBackUntilACodePointIsWhole) {
  const ByteTokenizer tokenizer;
  for (const std::string text : {"a", "é", "中", "😀"}) {
    IncrementalDetokenizer detokenizer(&tokenizer, false);
    std::vector<std::string> expected(text.size() - 1, "");
    expected.push_back(text);
    EXPECT_EQ(AppendBytes(&detokenizer, text), expected);
    EXPECT_EQ(detokenizer.Flush(), "");
  }
}

// Every way to cut a text of all lengths of code points into three tokens.
TEST(IncrementalDetokenizerTest, EverySplitGivesTheText) {
  const std::string text = "aé中😀b";
  for (size_t i = 0; i <= text.size(); ++i) {
    for (size_t j = i; j <= text.size(); ++j) {
      const ByteTokenizer tokenizer({text.substr(0, i), text.substr(i, j - i), text.substr(j)});
      IncrementalDetokenizer detokenizer(&tokenizer, false);
      std::string joined;
      for (const int32_t id : {257, 258, 259}) {
        const std::string part = detokenizer.Append(id);
        EXPECT_EQ(tokenization::FindMalformedUtf8(part), std::nullopt);
        joined += part;
      }
      EXPECT_EQ(joined, text) << i << " " << j;
      EXPECT_EQ(detokenizer.Flush(), "");
    }
  }
}

TEST(IncrementalDetokenizerTest, ReplacesWhatTurnsOutMalformed) {
  const ByteTokenizer tokenizer;
  IncrementalDetokenizer detokenizer(&tokenizer, false);
  EXPECT_EQ(AppendBytes(&detokenizer, "\xF0\x9Fz"),
            (std::vector<std::string>{"", "", std::string(kReplacement) + "z"}));
  EXPECT_EQ(AppendBytes(&detokenizer, "\xFF\xC3\xC3\xA9"),
            (std::vector<std::string>{kReplacement, "", kReplacement, "é"}));
}

TEST(IncrementalDetokenizerTest, FlushReplacesAnIncompleteCodePointOnce) {
  const ByteTokenizer tokenizer;
  IncrementalDetokenizer detokenizer(&tokenizer, false);
  AppendBytes(&detokenizer, "\xF0\x9F\x98");
  EXPECT_EQ(detokenizer.Flush(), kReplacement);
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(IncrementalDetokenizerTest, SkipsSpecialTokensOnlyIfAsked) {
  const ByteTokenizer tokenizer;
  IncrementalDetokenizer skipping(&tokenizer, true);
  IncrementalDetokenizer showing(&tokenizer, false);
  EXPECT_EQ(skipping.Append(256), "");
  EXPECT_EQ(showing.Append(256), "<special>");
}

TEST(IncrementalDetokenizerTest, IgnoresIdsWithoutAToken) {
  const ByteTokenizer tokenizer;
  IncrementalDetokenizer detokenizer(&tokenizer, false);
  EXPECT_EQ(detokenizer.Append(-1), "");
  EXPECT_EQ(detokenizer.Append(100'000), "");
}

class IncrementalFixtureTest : public testing::TestWithParam<std::string> {};

// Token by token gives what the whole gives, but for the space that some tokenizers put before a
// text and take off the whole's front.
TEST_P(IncrementalFixtureTest, AgreesWithTheWholeText) {
  const auto tokenizer = LoadFixture(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  for (const std::string& text : HardTexts()) {
    const auto ids = tokenizer->Encode(text, {false, false});
    ASSERT_TRUE(ids.ok());
    IncrementalDetokenizer detokenizer(tokenizer.get(), true);
    std::string joined;
    for (const int32_t id : *ids) {
      const std::string part = detokenizer.Append(id);
      EXPECT_EQ(tokenization::FindMalformedUtf8(part), std::nullopt) << text;
      joined += part;
    }
    joined += detokenizer.Flush();
    // Hugging Face's SentencePiece decoding takes more than one space off the front.
    const std::string whole = *tokenizer->Decode(*ids, true);
    ASSERT_GE(joined.size(), whole.size()) << text;
    const size_t extra = joined.size() - whole.size();
    EXPECT_EQ(joined, std::string(extra, ' ') + whole);
    EXPECT_LE(extra, GetParam() == "sentencepiece" ? 2u : 1u) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, IncrementalFixtureTest, testing::ValuesIn(FixtureNames()),
                         [](const auto& suite) { return suite.param; });

}  // namespace
}  // namespace tidal
