#include "server/logging.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace tidal::server {
namespace {

TEST(LogTextTest, WritesKeysAndValues) {
  EXPECT_EQ(FormatLogText("request finished", {{"request_id", std::string("abc")},
                                               {"tokens", int64_t{12}},
                                               {"attended_share", 0.25}}),
            "request finished request_id=abc tokens=12 attended_share=0.25");
}

TEST(LogTextTest, QuotesWhatCouldBeTakenForSomethingElse) {
  EXPECT_EQ(FormatLogText("m", {{"a", std::string("two words")},
                                {"b", std::string("line\nbreak")},
                                {"c", std::string("")},
                                {"d", std::string("say \"x=1\"")}}),
            R"(m a="two words" b="line\nbreak" c="" d="say \"x=1\"")");
}

TEST(LogJsonTest, WritesOneObjectALine) {
  const std::string line =
      FormatLogJson("2026-01-02T03:04:05.678Z", "info", "request finished",
                    {{"request_id", std::string("a\nb\"")}, {"tokens", int64_t{12}}, {"s", 0.25}});
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const nlohmann::json object = nlohmann::json::parse(line);
  EXPECT_EQ(object.at("time"), "2026-01-02T03:04:05.678Z");
  EXPECT_EQ(object.at("level"), "info");
  EXPECT_EQ(object.at("message"), "request finished");
  EXPECT_EQ(object.at("request_id"), "a\nb\"");
  EXPECT_EQ(object.at("tokens"), 12);
  EXPECT_EQ(object.at("s"), 0.25);
}

TEST(LogJsonTest, ReplacesBytesThatAreNotUtf8) {
  const std::string line = FormatLogJson("t", "info", "m", {{"text", std::string("a\xff")}});
  EXPECT_EQ(nlohmann::json::parse(line).at("text"), "a\xef\xbf\xbd");
}

class LoggerTest : public testing::TestWithParam<LogFormat> {
 protected:
  ~LoggerTest() override { InitLogging({}); }
};

TEST_P(LoggerTest, WritesBothOurLinesAndForeignOnes) {
  testing::internal::CaptureStderr();
  InitLogging({.format = GetParam(), .level = LogLevel::info});
  Log(LogLevel::info, "ours", {{"key", std::string("value")}});
  Log(LogLevel::debug, "hidden");
  spdlog::warn("foreign");
  const std::string output = testing::internal::GetCapturedStderr();
  EXPECT_EQ(output.find("hidden"), std::string::npos);
  const size_t line_end = output.find('\n');
  ASSERT_NE(line_end, std::string::npos);
  const std::string first = output.substr(0, line_end);
  const std::string second = output.substr(line_end + 1, output.size() - line_end - 2);
  if (GetParam() == LogFormat::kText) {
    EXPECT_TRUE(first.ends_with(" info ours key=value")) << first;
    EXPECT_TRUE(second.ends_with(" warning foreign")) << second;
  } else {
    EXPECT_EQ(nlohmann::json::parse(first).at("key"), "value");
    EXPECT_EQ(nlohmann::json::parse(second).at("message"), "foreign");
    EXPECT_EQ(nlohmann::json::parse(second).at("level"), "warning");
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, LoggerTest, testing::Values(LogFormat::kText, LogFormat::kJson));

}  // namespace
}  // namespace tidal::server
