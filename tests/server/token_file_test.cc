#include "server/token_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/engine/fake_clock.h"

namespace tidal::server {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr char kAliceToken[] = "alice-0123456789";
constexpr char kBobToken[] = "bob:with:colons:0123";

std::string MessageOf(const std::string& text) {
  return std::string(TokenList::Parse(text).status().message());
}

TEST(TokenListTest, NamesTheHolderOfAToken) {
  const absl::StatusOr<TokenList> list = TokenList::Parse(
      absl::StrCat("# clients\n\n  alice:", kAliceToken, "\r\nbob:", kBobToken, "\n"));
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_EQ(list->NameOf(kAliceToken), "alice");
  EXPECT_EQ(list->NameOf(kBobToken), "bob");
  EXPECT_EQ(list->NameOf("alice-012345678"), std::nullopt);
  EXPECT_EQ(list->NameOf("alice-01234567890"), std::nullopt);
  EXPECT_EQ(list->NameOf("alice-0123456780"), std::nullopt);
  EXPECT_EQ(list->NameOf(""), std::nullopt);
}

TEST(TokenListTest, AClientMayHaveAnOldAndANewToken) {
  const absl::StatusOr<TokenList> list =
      TokenList::Parse("a:0123456789abcdef\na:fedcba9876543210\n");
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_EQ(list->NameOf("0123456789abcdef"), "a");
  EXPECT_EQ(list->NameOf("fedcba9876543210"), "a");
}

TEST(TokenListTest, RefusesWhatIsWrongByLineAndWithoutTheToken) {
  const std::string secret = "s3cr3t-s3cr3t-s3cr3t";
  EXPECT_THAT(MessageOf(absl::StrCat("a:", secret, "\n", secret)), HasSubstr("line 2: "));
  EXPECT_EQ(MessageOf("a:short"), "line 1: the token has 5 characters, which is not in [16, 1024]");
  EXPECT_THAT(MessageOf(absl::StrCat("a:", std::string(1025, 'x'))), HasSubstr("1025"));
  EXPECT_THAT(MessageOf(absl::StrCat("a b:", secret)), HasSubstr("line 1: the name"));
  EXPECT_THAT(MessageOf(absl::StrCat(":", secret)), HasSubstr("line 1: the name"));
  EXPECT_THAT(MessageOf("a:0123456789 123456789"), HasSubstr("printable ASCII"));
  EXPECT_THAT(MessageOf(absl::StrCat("a:", secret, "\nb:", secret)),
              HasSubstr("line 2: repeats a token"));
  EXPECT_THAT(MessageOf("# nobody\n"), HasSubstr("no name:token"));
  for (const std::string& text :
       {absl::StrCat("a:", secret, "\n", secret), absl::StrCat("a b:", secret),
        absl::StrCat("a:", secret, "\nb:", secret), absl::StrCat("a:", secret, " ", secret)}) {
    EXPECT_THAT(MessageOf(text), Not(HasSubstr("s3cr3t")));
  }
}

class TokenFileTest : public testing::Test {
 protected:
  TokenFileTest() {
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    path_ = absl::StrCat(testing::TempDir(), "/", test->name(), ".tokens");
    Write("alice:0123456789abcdef\n");
    absl::StatusOr<std::unique_ptr<TokenFile>> file =
        TokenFile::Open("auth_token_file", path_, absl::Seconds(10), &clock_);
    EXPECT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
  }

  void Write(const std::string& text) { std::ofstream(path_) << text; }

  FakeClock clock_;
  std::string path_;
  std::unique_ptr<TokenFile> file_;
};

TEST_F(TokenFileTest, IsReadAgainAfterTheInterval) {
  Write("bob:fedcba9876543210\n");
  EXPECT_EQ(file_->NameOf("0123456789abcdef"), "alice");
  clock_.Advance(absl::Seconds(10));
  EXPECT_EQ(file_->NameOf("0123456789abcdef"), std::nullopt);
  EXPECT_EQ(file_->NameOf("fedcba9876543210"), "bob");
}

TEST_F(TokenFileTest, KeepsTheTokensWhileTheFileIsWrong) {
  Write("alice:short\n");
  clock_.Advance(absl::Seconds(10));
  EXPECT_EQ(file_->NameOf("0123456789abcdef"), "alice");
  Write("carol:0123456789ABCDEF\n");
  clock_.Advance(absl::Seconds(10));
  EXPECT_EQ(file_->NameOf("0123456789abcdef"), std::nullopt);
  EXPECT_EQ(file_->NameOf("0123456789ABCDEF"), "carol");
}

TEST_F(TokenFileTest, RefusesToOpenWhatIsWrong) {
  const auto message_of = [this](const std::string& path) {
    return std::string(
        TokenFile::Open("auth_token_file", path, absl::Seconds(1), &clock_).status().message());
  };
  EXPECT_THAT(message_of("/nowhere/tokens"),
              HasSubstr("--auth_token_file: '/nowhere/tokens' does not exist"));
  EXPECT_THAT(message_of("/tmp"), HasSubstr("is not a regular file"));
  Write("");
  EXPECT_THAT(message_of(path_), HasSubstr("is empty"));
  Write(std::string(kMaxCredentialFileBytes + 1, 'x'));
  EXPECT_THAT(message_of(path_), HasSubstr("more than 1048576 bytes"));
  Write("a:short");
  EXPECT_THAT(message_of(path_), HasSubstr("line 1: the token has 5 characters"));
}

}  // namespace
}  // namespace tidal::server
