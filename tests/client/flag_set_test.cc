#include "client/command/flag_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/time.h"

namespace tidal::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FlagSetTest : public ::testing::Test {
 protected:
  FlagSetTest() {
    flags_.Add("name", &name_, "TEXT", "a name");
    flags_.Add("count", &count_, "N", "a count");
    flags_.Add("share", &share_, "X", "a share");
    flags_.Add("wait", &wait_, "DURATION", "a time");
    flags_.Add("quick", &quick_, "", "a choice");
    flags_.AddRepeated("word", &words_, "TEXT", "words");
  }

  absl::StatusOr<std::vector<std::string>> Parse(const std::vector<std::string>& arguments,
                                                 bool stop_at_positional = false) {
    return flags_.Parse(arguments, stop_at_positional);
  }

  std::string name_ = "default";
  std::optional<int32_t> count_;
  std::optional<float> share_;
  absl::Duration wait_;
  std::optional<bool> quick_;
  std::vector<std::string> words_;
  FlagSet flags_;
};

TEST_F(FlagSetTest, LeavesVariablesAloneWhereFlagsAreAbsent) {
  ASSERT_TRUE(Parse({}).ok());
  EXPECT_EQ(name_, "default");
  EXPECT_FALSE(count_.has_value());
  EXPECT_FALSE(quick_.has_value());
}

TEST_F(FlagSetTest, ReadsValuesInBothForms) {
  ASSERT_TRUE(Parse({"--name=a=b", "--count", "-3", "-share=0.5", "--wait", "1m30s"}).ok());
  EXPECT_EQ(name_, "a=b");
  EXPECT_EQ(count_, -3);
  EXPECT_EQ(share_, 0.5F);
  EXPECT_EQ(wait_, absl::Seconds(90));
}

TEST_F(FlagSetTest, ReadsBoolsWithoutValueAndWithNo) {
  ASSERT_TRUE(Parse({"--quick"}).ok());
  EXPECT_EQ(quick_, true);
  ASSERT_TRUE(Parse({"--noquick"}).ok());
  EXPECT_EQ(quick_, false);
  ASSERT_TRUE(Parse({"--quick=true"}).ok());
  EXPECT_EQ(quick_, true);
}

TEST_F(FlagSetTest, LastOccurrenceCounts) {
  ASSERT_TRUE(Parse({"--count=1", "--count=2"}).ok());
  EXPECT_EQ(count_, 2);
}

TEST_F(FlagSetTest, RepeatedFlagKeepsEveryValueAsItIs) {
  ASSERT_TRUE(Parse({"--word=a,b", "--word", "", "--word=\n"}).ok());
  EXPECT_THAT(words_, ElementsAre("a,b", "", "\n"));
}

TEST_F(FlagSetTest, ReturnsWhatIsNoFlag) {
  EXPECT_THAT(*Parse({"one", "--count=1", "-", "two"}), ElementsAre("one", "-", "two"));
  EXPECT_EQ(count_, 1);
}

TEST_F(FlagSetTest, TwoDashesEndTheFlags) {
  EXPECT_THAT(*Parse({"--count=1", "--", "--count=2"}), ElementsAre("--count=2"));
  EXPECT_EQ(count_, 1);
}

TEST_F(FlagSetTest, StopsAtTheFirstPositionalWhereAsked) {
  EXPECT_THAT(*Parse({"--count=1", "generate", "--unknown"}, true),
              ElementsAre("generate", "--unknown"));
}

TEST_F(FlagSetTest, RefusesUnknownFlagByName) {
  for (const char* argument : {"--colour", "--colour=red", "--nocolour", "--nocount"}) {
    const absl::Status status = Parse({argument}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("unknown flag --"));
  }
}

TEST_F(FlagSetTest, RefusesValueOfWrongTypeOrRange) {
  for (const char* argument : {"--count=many", "--count=3000000000", "--count=", "--share=x",
                               "--wait=30", "--quick=perhaps"}) {
    const absl::Status status = Parse({argument}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << argument;
    EXPECT_THAT(std::string(status.message()), HasSubstr("has the value")) << argument;
  }
}

TEST_F(FlagSetTest, RefusesFlagWithoutItsValue) {
  EXPECT_THAT(std::string(Parse({"--count"}).status().message()), HasSubstr("lacks its value"));
}

TEST_F(FlagSetTest, HelpShowsEveryFlag) {
  EXPECT_THAT(flags_.Help(), HasSubstr("--count=N"));
  EXPECT_THAT(flags_.Help(), HasSubstr("--quick  "));
}

}  // namespace
}  // namespace tidal::client
