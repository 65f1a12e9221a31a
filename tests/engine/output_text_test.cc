#include "engine/output_text.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/engine/fake_tokenizer.h"

namespace tidal {
namespace {

const FakeTokenizer& Bytes() {
  static const FakeTokenizer tokenizer = FakeTokenizer::OfBytes();
  return tokenizer;
}

// Feeds `text` byte by byte and returns what was released after each byte.
std::vector<std::string> Feed(OutputText* output, const std::string& text) {
  std::vector<std::string> released;
  for (const char byte : text) {
    if (output->matched_stop_string().has_value()) break;
    released.push_back(output->Append(static_cast<unsigned char>(byte), /*match_stops=*/true));
  }
  return released;
}

std::string Joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += part;
  return text;
}

TEST(OutputTextTest, ReleasesTextAtOnceWithoutStops) {
  OutputText output(&Bytes(), {});
  EXPECT_EQ(Feed(&output, "abc"), (std::vector<std::string>{"a", "b", "c"}));
}

TEST(OutputTextTest, HoldsBackIncompleteCodePoints) {
  OutputText output(&Bytes(), {});
  EXPECT_EQ(Feed(&output, "\xF0\x9F\x98\x80!"),
            (std::vector<std::string>{"", "", "", "\xF0\x9F\x98\x80", "!"}));
}

TEST(OutputTextTest, FlushReplacesWhatNeverBecameACodePoint) {
  OutputText output(&Bytes(), {});
  EXPECT_EQ(Joined(Feed(&output, "a\xF0\x9F")), "a");
  EXPECT_EQ(output.Flush(), "\xEF\xBF\xBD");
}

TEST(OutputTextTest, EndsBeforeAStopStringAcrossTokens) {
  OutputText output(&Bytes(), {.stop_strings = {"END"}});
  EXPECT_EQ(Joined(Feed(&output, "text EEND more")), "text E");
  EXPECT_EQ(output.matched_stop_string(), "END");
}

TEST(OutputTextTest, KeepsTheStopStringWhereAskedTo) {
  OutputText output(&Bytes(), {.stop_strings = {"END"}, .include_stop_in_output = true});
  EXPECT_EQ(Joined(Feed(&output, "text END more")), "text END");
}

TEST(OutputTextTest, ReleasesAFalseBeginningOfAStop) {
  OutputText output(&Bytes(), {.stop_strings = {"aab"}});
  EXPECT_EQ(Feed(&output, "aaac"), (std::vector<std::string>{"", "", "a", "aac"}));
}

TEST(OutputTextTest, FlushReleasesTheBeginningOfAStop) {
  OutputText output(&Bytes(), {.stop_strings = {"aab"}});
  EXPECT_EQ(Joined(Feed(&output, "xaa")), "x");
  EXPECT_EQ(output.Flush(), "aa");
}

TEST(OutputTextTest, TheEarliestStopWins) {
  const FakeTokenizer tokenizer({"one two three"});
  OutputText output(&tokenizer, {.stop_strings = {"three", "two"}});
  EXPECT_EQ(output.Append(0, true), "one ");
  EXPECT_EQ(output.matched_stop_string(), "two");
}

TEST(OutputTextTest, StopsInTheMiddleOfAToken) {
  const FakeTokenizer tokenizer({"before\nafter"});
  OutputText output(&tokenizer, {.stop_strings = {"\n"}});
  EXPECT_EQ(output.Append(0, true), "before");
}

TEST(OutputTextTest, DoesNotMatchWhereTold) {
  OutputText output(&Bytes(), {.stop_strings = {"a"}});
  EXPECT_EQ(output.Append('a', /*match_stops=*/false), "a");
  EXPECT_FALSE(output.matched_stop_string().has_value());
  EXPECT_EQ(output.Append('a', /*match_stops=*/true), "");
  EXPECT_TRUE(output.matched_stop_string().has_value());
}

TEST(OutputTextTest, LeavesOutSpecialTokensUnlessAskedFor) {
  const FakeTokenizer tokenizer({"word", "<eos>"});
  OutputText without(&tokenizer, {.skip_special_tokens = true});
  EXPECT_EQ(without.Append(0, true) + without.Append(1, true), "word");
  OutputText with(&tokenizer, {.skip_special_tokens = false});
  EXPECT_EQ(with.Append(0, true) + with.Append(1, true), "word<eos>");
}

TEST(OutputTextTest, IsEmptyWithoutATokenizer) {
  OutputText output(nullptr, {.stop_strings = {"a"}});
  EXPECT_EQ(output.Append('a', true), "");
  EXPECT_EQ(output.Flush(), "");
}

}  // namespace
}  // namespace tidal
