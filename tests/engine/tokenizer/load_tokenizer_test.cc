#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "engine/tokenizer/sentencepiece_tokenizer.h"
#include "tests/engine/tokenizer/fixtures.h"

namespace tidal {
namespace {

using testing::HasSubstr;

// An empty folder, removed afterwards.
class LoadTokenizerTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::path(testing::TempDir()) /
        (std::string("tokenizer_") + testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, const std::string& content) {
    std::ofstream(folder_ / name, std::ios::binary) << content;
  }
  void CopyModel() {
    Write("tokenizer.model", ReadWholeFile(FixtureFolder() + "sentencepiece/tokenizer.model"));
  }

  std::filesystem::path folder_;
};

TEST_F(LoadTokenizerTest, ReportsAFolderWithoutATokenizer) {
  const absl::Status status = LoadTokenizer(folder_.string()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.ToString(), HasSubstr("neither tokenizer.json nor tokenizer.model"));
  EXPECT_EQ(LoadTokenizer((folder_ / "missing").string()).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(LoadTokenizerTest, PrefersTokenizerJson) {
  CopyModel();
  Write("tokenizer.json", "{");
  EXPECT_THAT(LoadTokenizer(folder_.string()).status().ToString(), HasSubstr("malformed JSON"));
}

TEST_F(LoadTokenizerTest, RefusesAFolderInPlaceOfAFile) {
  std::filesystem::create_directory(folder_ / "tokenizer.json");
  EXPECT_THAT(LoadTokenizer(folder_.string()).status().ToString(), HasSubstr("not a regular file"));
}

TEST_F(LoadTokenizerTest, AddsBeginOfSequenceByDefault) {
  CopyModel();
  const auto tokenizer = LoadTokenizer(folder_.string());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode("x", {})->front(), 1);
  EXPECT_EQ((*tokenizer)->TokenToId("<s>"), 1);
  EXPECT_EQ((*tokenizer)->TokenToId("no such piece"), std::nullopt);
  EXPECT_EQ((*tokenizer)->TokenBytes(1), "<s>");
  EXPECT_TRUE((*tokenizer)->IsSpecial(1));
}

TEST_F(LoadTokenizerTest, FollowsTokenizerConfig) {
  CopyModel();
  Write("tokenizer_config.json", R"({"add_bos_token": false, "add_eos_token": true})");
  const auto tokenizer = LoadTokenizer(folder_.string());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto ids = (*tokenizer)->Encode("x", {});
  EXPECT_NE(ids->front(), 1);
  EXPECT_EQ(ids->back(), 2);
}

TEST_F(LoadTokenizerTest, ByteAndSpacePiecesHaveTheirBytes) {
  CopyModel();
  const auto tokenizer = LoadTokenizer(folder_.string());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->TokenBytes(*(*tokenizer)->TokenToId("<0x0A>")), "\n");
  EXPECT_EQ((*tokenizer)->TokenBytes(*(*tokenizer)->TokenToId("<0xFF>")), "\xFF");
  EXPECT_EQ((*tokenizer)->TokenBytes(*(*tokenizer)->TokenToId("▁the")), " the");
}

TEST_F(LoadTokenizerTest, RefusesABadTokenizerConfig) {
  CopyModel();
  const std::pair<std::string, std::string> cases[] = {
      {"{", "malformed JSON"},
      {R"({"add_bos_token": "yes"})", "add_bos_token is not true or false"},
      {R"({"bos_token": "<begin>"})", "\"<begin>\""},
      {R"({"bos_token": {"content": ""}})", "bos_token.content is empty"},
      {R"({"added_tokens_decoder": {"1500": {"content": "<pad>"}}})", "added_tokens_decoder.1500"},
  };
  for (const auto& [config, message] : cases) {
    Write("tokenizer_config.json", config);
    const absl::Status status = LoadTokenizer(folder_.string()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << config;
    EXPECT_THAT(status.ToString(), HasSubstr(message));
  }
}

TEST_F(LoadTokenizerTest, RefusesAddedTokensBesideATokenizerModel) {
  CopyModel();
  Write("added_tokens.json", R"({"<pad>": 1500})");
  EXPECT_THAT(LoadTokenizer(folder_.string()).status().ToString(), HasSubstr("added_tokens.json"));
}

TEST_F(LoadTokenizerTest, RefusesWhatIsNoSentencePieceModel) {
  for (const std::string content : {"", "not a model", "\x0a\xff\xff\xff\xff\x0f"}) {
    Write("tokenizer.model", content);
    EXPECT_EQ(LoadTokenizer(folder_.string()).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(LoadTokenizerTest, NoTruncatedModelCrashes) {
  const std::string model = ReadWholeFile(FixtureFolder() + "sentencepiece/tokenizer.model");
  for (size_t size = 0; size < model.size(); size += 97) {
    const auto tokenizer = tokenization::ParseSentencePieceModel(model.substr(0, size), {});
    if (!tokenizer.ok()) continue;
    EXPECT_TRUE((*tokenizer)->Encode("some text", {}).ok()) << size;
  }
}

}  // namespace
}  // namespace tidal
