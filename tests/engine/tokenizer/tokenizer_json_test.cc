#include "engine/tokenizer/tokenizer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/tokenizer/fixtures.h"

namespace tidal {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

// A small file that loads: bytes of ASCII, one merge.
json SmallFile() {
  json vocab = json::object();
  for (char c = '!'; c <= '~'; ++c) vocab[std::string(1, c)] = c - '!';
  vocab["Ġ"] = 94;
  vocab["he"] = 95;
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", json::array({{{"id", 96}, {"content", "<s>"}, {"special", true}}})},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"h e"}}}}};
}

absl::Status ParseStatus(const json& file) { return ParseTokenizerJson(file.dump()).status(); }

std::vector<int32_t> Encode(const json& file, std::string_view text) {
  const auto tokenizer = ParseTokenizerJson(file.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  if (!tokenizer.ok()) return {};
  const auto ids = (*tokenizer)->Encode(text, {});
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : std::vector<int32_t>();
}

TEST(TokenizerJsonTest, LoadsASmallFile) {
  EXPECT_THAT(Encode(SmallFile(), "he!<s>"), ElementsAre(95, 0, 96));
  json pairs = SmallFile();
  pairs["model"]["merges"] = json::array({json::array({"h", "e"})});
  EXPECT_THAT(Encode(pairs, "he"), ElementsAre(95));
}

TEST(TokenizerJsonTest, LooksTokensUpByName) {
  const auto tokenizer = ParseTokenizerJson(SmallFile().dump());
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ((*tokenizer)->TokenToId("<s>"), 96);
  EXPECT_EQ((*tokenizer)->TokenToId("he"), 95);
  EXPECT_EQ((*tokenizer)->TokenToId("she"), std::nullopt);
  EXPECT_TRUE((*tokenizer)->IsSpecial(96));
  EXPECT_FALSE((*tokenizer)->IsSpecial(95));
  EXPECT_EQ((*tokenizer)->TokenBytes(94), " ");
}

TEST(TokenizerJsonTest, AcceptsGapsInTheIds) {
  json file = SmallFile();
  file["added_tokens"][0]["id"] = 200;
  const auto tokenizer = ParseTokenizerJson(file.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 201);
  EXPECT_EQ((*tokenizer)->TokenBytes(150), "");
  EXPECT_EQ(*(*tokenizer)->Decode({95, 150, 95}, false), "hehe");
}

TEST(TokenizerJsonTest, PutsTheTemplateAroundTheText) {
  json file = SmallFile();
  file["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", json::array({{{"SpecialToken", {{"id", "begin"}, {"type_id", 0}}}},
                              {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
                              {{"SpecialToken", {{"id", "end"}, {"type_id", 0}}}}})},
      {"pair", json::array()},
      {"special_tokens",
       {{"begin", {{"id", "begin"}, {"ids", {96, 0}}, {"tokens", {"<s>", "!"}}}},
        {"end", {{"id", "end"}, {"ids", {1}}, {"tokens", {"\""}}}}}}};
  EXPECT_THAT(Encode(file, "he"), ElementsAre(96, 0, 95, 1));
}

// Each change to the small file makes it one that is refused with a message that names the place.
struct Refusal {
  std::string pointer;  // what is replaced, as a JSON pointer
  json value;
  std::string message;
};

TEST(TokenizerJsonTest, RefusesWhatItDoesNotImplementByName) {
  const json regex_split = {{"type", "Split"},
                            {"pattern", {{"Regex", R"(\w+)"}}},
                            {"behavior", "Isolated"},
                            {"invert", false}};
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  const Refusal refusals[] = {
      {"/version", "2.0", "version \"2.0\""},
      {"/surprise", 1, "unknown member \"surprise\""},
      {"/normalizer", {{"type", "NFC"}}, "normalizer \"NFC\""},
      {"/normalizer",
       {{"type", "Sequence"}, {"normalizers", json::array({{{"type", "Lowercase"}}})}},
       "normalizer.normalizers[0] \"Lowercase\""},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"Regex", " +"}}}, {"content", " "}},
       "normalizer.pattern has the unknown member \"Regex\""},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", " "}},
       "normalizer.pattern.String is empty"},
      {"/normalizer",
       {{"type", "Prepend"}, {"prepend", std::string(65, 'x')}},
       "normalizer.prepend has 65 bytes, at most 64"},
      {"/pre_tokenizer", {{"type", "Whitespace"}}, "pre_tokenizer \"Whitespace\""},
      {"/pre_tokenizer", regex_split, R"(pre_tokenizer.pattern.Regex regular expression: \w)"},
      {"/pre_tokenizer/add_prefix_space", "no", "pre_tokenizer.add_prefix_space is not true"},
      {"/pre_tokenizer/new_option", true, "pre_tokenizer has the unknown member"},
      {"/pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", {byte_level, byte_level}}},
       "ByteLevel before its last step"},
      {"/pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", json(17, byte_level)}},
       "pre_tokenizer.pretokenizers has 17 elements, at most 16"},
      {"/pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", "ab"}, {"prepend_scheme", "first"}},
       "pre_tokenizer.replacement is not one character"},
      {"/pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "last"}},
       "pre_tokenizer.prepend_scheme \"last\""},
      {"/decoder", nullptr, "decoder null"},
      {"/decoder", {{"type", "WordPiece"}}, "decoder \"WordPiece\""},
      {"/post_processor", {{"type", "BertProcessing"}}, "post_processor \"BertProcessing\""},
      {"/model/type", "Unigram", "model \"Unigram\""},
      {"/model/dropout", 0.1, "model.dropout"},
      {"/model/continuing_subword_prefix", "##", "model.continuing_subword_prefix"},
      {"/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix"},
      {"/model/unk_token", "<unk>", "model.unk_token \"<unk>\""},
      {"/model/byte_fallback", true, "model.byte_fallback"},
  };
  for (const Refusal& refusal : refusals) {
    json file = SmallFile();
    file[json::json_pointer(refusal.pointer)] = refusal.value;
    const absl::Status status = ParseStatus(file);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << refusal.pointer;
    EXPECT_THAT(status.ToString(), HasSubstr(refusal.message)) << refusal.value;
  }
}

TEST(TokenizerJsonTest, RefusesInconsistentFiles) {
  const Refusal refusals[] = {
      {"/model/vocab", json::array(), "model.vocab is not an object"},
      {"/model/vocab", json::object(), "model.vocab is empty"},
      {"/model/vocab/he", 1, "two tokens have the id 1"},
      {"/model/vocab/he", -1, "model.vocab[\"he\"] is not a whole number"},
      {"/model/vocab/he", 1.5, "model.vocab[\"he\"] is not a whole number"},
      {"/model/vocab/he", "95", "model.vocab[\"he\"] is not a whole number"},
      {"/model/vocab/he", 1 << 20, "is 1048576, at most 1048575"},
      {"/model/vocab/he", 18446744073709551615ull, "at most 1048575"},
      {"/model/merges/0", "h", "model.merges[0] is not a pair"},
      {"/model/merges/0", "h e x", "model.merges[0] is not a pair"},
      {"/model/merges/0", {"h", "e", "x"}, "model.merges[0] is not a pair"},
      {"/model/merges/0", "h x", "model.merges[0] (\"h\", \"x\")"},
      {"/model/merges", nullptr, "model.merges is not an array"},
      {"/model", nullptr, "model is not an object"},
      {"/added_tokens", 3, "added_tokens is not an array"},
      {"/added_tokens/0/content", "", "1 to 1024"},
      {"/added_tokens/0/content", std::string(1025, 'x'), "1025 bytes, at most 1024"},
      {"/added_tokens/0/content", "he", "has the id 96, but in model.vocab 95"},
      {"/added_tokens/0/id", 95, "two tokens have the id 95"},
      {"/added_tokens/0/special", 1, "added_tokens[0].special"},
      {"/added_tokens/1", {{"id", 97}, {"content", "<s>"}}, "twice"},
      {"/post_processor",
       {{"type", "TemplateProcessing"}, {"single", json::array()}, {"pair", json::array()}},
       "post_processor.single has no place"},
      {"/post_processor",
       {{"type", "TemplateProcessing"},
        {"single", json::array({{{"SpecialToken", {{"id", "x"}}}}})},
        {"pair", json::array()}},
       "post_processor.special_tokens.x is missing"},
      {"/post_processor",
       {{"type", "TemplateProcessing"},
        {"single", json::array({{{"Sequence", {{"id", "B"}}}}})},
        {"pair", json::array()}},
       "post_processor.single[0].Sequence"},
      {"/post_processor",
       {{"type", "TemplateProcessing"},
        {"single", json::array({{{"SpecialToken", {{"id", "x"}}}}, {{"Sequence", {{"id", "A"}}}}})},
        {"special_tokens", {{"x", {{"ids", {97}}}}}},
        {"pair", json::array()}},
       "the id 97, which no token has"},
  };
  for (const Refusal& refusal : refusals) {
    json file = SmallFile();
    file[json::json_pointer(refusal.pointer)] = refusal.value;
    const absl::Status status = ParseStatus(file);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << refusal.pointer;
    EXPECT_THAT(status.ToString(), HasSubstr(refusal.message)) << refusal.value;
  }
}

TEST(TokenizerJsonTest, RefusesHostileJson) {
  std::string many_values(5'000'000, ',');
  many_values.front() = '[';
  many_values.back() = ']';
  const std::pair<std::string, std::string> cases[] = {
      {"", "malformed JSON"},
      {"null", "is not an object"},
      {"[]", "is not an object"},
      {"{\"model\":", "malformed JSON"},
      {"{\"a\xFF\": 1}", "malformed JSON"},
      {"{\"version\": 1e999}", "malformed JSON"},
      {std::string(100'000, '['), "nested deeper than 32"},
      {std::string(100'000, ']'), "malformed JSON"},
      {many_values, "at most 4194304"},
      {std::string((64 << 20) + 1, ' '), "at most 67108864"},
      {"{\"\\", "malformed JSON"},
  };
  for (const auto& [text, message] : cases) {
    const absl::Status status = ParseTokenizerJson(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.ToString(), HasSubstr(message)) << text.substr(0, 40);
  }
}

TEST(TokenizerJsonTest, RefusesEveryTruncation) {
  const std::string text = SmallFile().dump();
  for (size_t size = 0; size < text.size(); ++size) {
    EXPECT_EQ(ParseTokenizerJson(text.substr(0, size)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << size;
  }
}

// Replaces one character at a time; what still loads must still encode and decode.
TEST(TokenizerJsonTest, SurvivesEveryChangedByte) {
  const std::string text = SmallFile().dump();
  int num_loaded = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    for (const char replacement : {'"', '0', '}', 'x', '\x80'}) {
      std::string changed = text;
      changed[i] = replacement;
      const auto tokenizer = ParseTokenizerJson(changed);
      if (!tokenizer.ok()) continue;
      ++num_loaded;
      const auto ids = (*tokenizer)->Encode("he <s> he", {});
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_TRUE((*tokenizer)->Decode(*ids, false).ok());
    }
  }
  EXPECT_GT(num_loaded, 0);
}

TEST(TokenizerJsonTest, BoundsWhatNormalisationMayAdd) {
  json file = SmallFile();
  json steps = json::array();
  for (int i = 0; i < 8; ++i) {
    steps.push_back(
        {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(64, 'a')}});
  }
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  const auto tokenizer = ParseTokenizerJson(file.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode("aaaa", {}).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE((*tokenizer)->Encode("bbbb", {}).ok());
}

TEST(TokenizerJsonTest, RefusesTextBeyondItsLimit) {
  const auto tokenizer = ParseTokenizerJson(SmallFile().dump());
  ASSERT_TRUE(tokenizer.ok());
  const auto ids = (*tokenizer)->Encode(std::string((64 << 20) + 1, 'a'), {});
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(ids.status().ToString(), HasSubstr("at most 67108864"));
}

// As Rust's \w sees it: letters of Unicode 16, marks and joiners count, symbols do not.
TEST(TokenizerJsonTest, SingleWordTokensNeedNoWordCharacterBeside) {
  json file = SmallFile();
  file["added_tokens"].push_back(
      {{"id", 97}, {"content", "zz"}, {"single_word", true}, {"normalized", false}});
  for (const char* beside : {"a", "_", "é", "\u0301", "\u200d", "\u0663", "\u24b6", "\U00031350"}) {
    EXPECT_NE(Encode(file, std::string("zz") + beside).front(), 97) << beside;
    EXPECT_NE(Encode(file, std::string(beside) + "zz").back(), 97) << beside;
  }
  for (const char* beside : {" ", ".", "-", "\u00b2", "\u2028", "😀", "\u200b"}) {
    EXPECT_EQ(Encode(file, std::string("zz") + beside).front(), 97) << beside;
    EXPECT_EQ(Encode(file, std::string(beside) + "zz").back(), 97) << beside;
  }
}

TEST(TokenizerJsonTest, DigitsAreThoseOfRust) {
  json file = SmallFile();
  file["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Digits"}, {"individual_digits", true}},
        {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", false}}}}};
  // Each piece gets a prefix space (94), as far as its bytes have tokens.
  EXPECT_THAT(Encode(file, "a1"), ElementsAre(94, 'a' - '!', 94, '1' - '!'));
  EXPECT_THAT(Encode(file, "a\U00011de5"), ElementsAre(94, 'a' - '!', 94));
  EXPECT_THAT(Encode(file, "a\U0001f600"), ElementsAre(94, 'a' - '!'));
}

// A run of white space that one token takes along, all of it made of tokens that do the same.
TEST(TokenizerJsonTest, WhiteSpaceTokensTakeLinearTime) {
  json file = SmallFile();
  file["added_tokens"].push_back(
      {{"id", 97}, {"content", " "}, {"rstrip", true}, {"lstrip", true}, {"normalized", false}});
  EXPECT_EQ(Encode(file, std::string(1'000'000, ' ')).size(), 1'000'000u);
}

// About a hundred thousand tokens; a bound that only quadratic work would miss.
TEST(TokenizerJsonTest, EncodesALongTextOfEveryKind) {
  std::string text;
  while (text.size() < 300'000) {
    for (const std::string& hard : HardTexts()) text += hard;
  }
  for (const std::string& name : FixtureNames()) {
    const auto tokenizer = LoadFixture(name);
    ASSERT_NE(tokenizer, nullptr);
    const auto ids = tokenizer->Encode(text, {});
    ASSERT_TRUE(ids.ok()) << name << ": " << ids.status();
    EXPECT_GT(ids->size(), 50'000u) << name;
  }
}

}  // namespace
}  // namespace tidal
