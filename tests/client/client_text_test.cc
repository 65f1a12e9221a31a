// The pure functions beneath the commands: UTF-8, names, figures, exit codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/command/event_json.h"
#include "client/command/exit_code.h"
#include "client/command/generation_summary.h"
#include "client/command/names.h"
#include "client/command/utf8.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Utf8Test, AcceptsBordersOfEachLength) {
  for (const absl::string_view text :
       {"", "\x7F", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
        "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_FALSE(FindInvalidUtf8(text).has_value()) << text;
  }
}

TEST(Utf8Test, FindsFirstInvalidByte) {
  EXPECT_EQ(FindInvalidUtf8("ab\x80"), 2U);            // continuation without lead
  EXPECT_EQ(FindInvalidUtf8("\xC0\xAF"), 0U);          // overlong
  EXPECT_EQ(FindInvalidUtf8("\xE0\x9F\xBF"), 0U);      // overlong
  EXPECT_EQ(FindInvalidUtf8("a\xED\xA0\x80"), 1U);     // surrogate
  EXPECT_EQ(FindInvalidUtf8("\xF4\x90\x80\x80"), 0U);  // above U+10FFFF
  EXPECT_EQ(FindInvalidUtf8("abc\xE2\x82"), 3U);       // truncated
  EXPECT_EQ(FindInvalidUtf8("\xFF"), 0U);
}

TEST(NamesTest, AttentionModesAreReadAsTheyAreWritten) {
  for (const auto mode :
       {v1::ATTENTION_MODE_FULL, v1::ATTENTION_MODE_TIDAL, v1::ATTENTION_MODE_QUEST}) {
    EXPECT_EQ(*ParseAttentionMode(AttentionModeName(mode)), mode);
  }
  EXPECT_FALSE(ParseAttentionMode("unspecified").ok());
  EXPECT_FALSE(ParseAttentionMode("FULL").ok());
}

TEST(NamesTest, UnknownEnumValueIsItsNumber) {
  EXPECT_EQ(FinishReasonName(static_cast<v1::FinishReason>(77)), "77");
  EXPECT_EQ(FinishReasonName(v1::FINISH_REASON_END_OF_SEQUENCE), "end_of_sequence");
}

TEST(SummaryTest, FiguresAreAbsentWhereThereIsNothingToDivideBy) {
  v1::Usage usage;
  v1::Timings timings;
  EXPECT_FALSE(AttendedShare(usage).has_value());
  usage.set_generated_tokens(1);
  timings.set_decode_seconds(1);
  EXPECT_FALSE(DecodeTokensPerSecond(usage, timings).has_value());
  usage.set_generated_tokens(11);
  EXPECT_DOUBLE_EQ(*DecodeTokensPerSecond(usage, timings), 10);
  timings.set_decode_seconds(0);
  EXPECT_FALSE(DecodeTokensPerSecond(usage, timings).has_value());
}

TEST(ExitCodeTest, EveryCodeHasItsPlace) {
  const auto of = [](absl::StatusCode code) { return ExitCodeOf(absl::Status(code, "x")); };
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), ExitCode::kOk);
  EXPECT_EQ(of(absl::StatusCode::kUnavailable), ExitCode::kUnavailable);
  EXPECT_EQ(of(absl::StatusCode::kInvalidArgument), ExitCode::kInvalidRequest);
  EXPECT_EQ(of(absl::StatusCode::kUnimplemented), ExitCode::kInvalidRequest);
  EXPECT_EQ(of(absl::StatusCode::kAlreadyExists), ExitCode::kInvalidRequest);
  EXPECT_EQ(of(absl::StatusCode::kResourceExhausted), ExitCode::kResourceExhausted);
  EXPECT_EQ(of(absl::StatusCode::kDeadlineExceeded), ExitCode::kDeadlineExceeded);
  EXPECT_EQ(of(absl::StatusCode::kCancelled), ExitCode::kCancelled);
  EXPECT_EQ(of(absl::StatusCode::kAborted), ExitCode::kCancelled);
  EXPECT_EQ(of(absl::StatusCode::kInternal), ExitCode::kOther);
  EXPECT_EQ(of(absl::StatusCode::kUnknown), ExitCode::kOther);
}

TEST(EventJsonTest, LogprobsCarryBytesThatAreNoUtf8) {
  v1::GenerateStreamResponse event;
  auto* logprob = event.mutable_delta()->add_logprobs();
  logprob->set_token_id(7);
  logprob->set_token("\xF0\x9F");
  logprob->set_logprob(-0.5F);
  logprob->add_top()->set_token_id(8);
  std::ostringstream out;
  WriteJsonLine(EventJson(event), out);
  const auto json = nlohmann::json::parse(out.str());
  EXPECT_EQ(json["logprobs"][0]["bytes"], (std::vector<int>{0xF0, 0x9F}));
  EXPECT_EQ(json["logprobs"][0]["logprob"], -0.5);
  EXPECT_EQ(json["logprobs"][0]["top"][0]["token_id"], 8);
  EXPECT_THAT(out.str(), Not(HasSubstr("\xF0\x9F\"")));
}

}  // namespace
}  // namespace tidal::client
