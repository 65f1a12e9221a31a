#include "engine/tokenizer/utf8.h"

#include <gtest/gtest.h>

namespace tidal::tokenization {
namespace {

TEST(Utf8Test, AcceptsTheFirstAndLastCodePointOfEachLength) {
  for (const std::string text :
       {"", "\x01", "\x7F", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
        "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_EQ(FindMalformedUtf8(text), std::nullopt) << testing::PrintToString(text);
  }
  EXPECT_EQ(FindMalformedUtf8(std::string("a\0b", 3)), std::nullopt);
}

TEST(Utf8Test, FindsTheFirstMalformedByte) {
  const std::pair<std::string, size_t> cases[] = {
      {"\x80", 0},                      // a continuation byte alone
      {"ab\xC0\x80", 2},                // overlong NUL
      {"\xC1\xBF", 0},                  // overlong
      {"a\xE0\x9F\xBF", 1},             // overlong
      {"\xF0\x8F\xBF\xBF", 0},          // overlong
      {"\xE4\xB8\xAD\xED\xA0\x80", 3},  // U+D800
      {"\xED\xBF\xBF", 0},              // U+DFFF
      {"\xF4\x90\x80\x80", 0},          // U+110000
      {"\xF5\x80\x80\x80", 0},
      {"x\xFF", 1},
      {"\xC3\x28", 0},
      {"ok\xE4\xB8", 2},  // truncated
      {"\xF0\x9F\x98", 0},
  };
  for (const auto& [text, offset] : cases) {
    EXPECT_EQ(FindMalformedUtf8(text), offset) << testing::PrintToString(text);
  }
}

// The examples of the Unicode Standard, section 3.9, and of Rust's from_utf8_lossy.
TEST(Utf8Test, ReplacesMaximalSubparts) {
  const std::string r(kReplacementCharacter);
  EXPECT_EQ(ReplaceMalformedUtf8("a\xF1\x80\x80\xE1\x80\xC2"
                                 "b\x80"
                                 "c\x80\xBF"
                                 "d"),
            "a" + r + r + r + "b" + r + "c" + r + r + "d");
  EXPECT_EQ(ReplaceMalformedUtf8("\xED\xA0\x80"), r + r + r);
  EXPECT_EQ(ReplaceMalformedUtf8("\xF0\x9F\x98"), r);
  EXPECT_EQ(ReplaceMalformedUtf8("\xF0\x9F\x98z"), r + "z");
  EXPECT_EQ(ReplaceMalformedUtf8("\xF4\x91\x92\x93\xFF"
                                 "A\x80\xBF"
                                 "B"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(ReplaceMalformedUtf8("grüße 😀"), "grüße 😀");
}

TEST(Utf8Test, EncodingInvertsDecoding) {
  for (char32_t c = 0; c < 0x110000; c += c < 0x900 ? 1 : 61) {
    if (0xD800 <= c && c < 0xE000) continue;
    std::string text;
    AppendUtf8(c, &text);
    ASSERT_EQ(FindMalformedUtf8(text), std::nullopt) << static_cast<uint32_t>(c);
    ASSERT_EQ(Utf8SizeFromLead(text[0]), text.size());
    ASSERT_EQ(DecodeUtf8(text), c);
  }
}

}  // namespace
}  // namespace tidal::tokenization
