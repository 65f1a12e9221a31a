// Figures of a load point, and the picture of several.
#include "client/bench/load_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/bench/report_output.h"
#include "client/bench/svg_chart.h"

namespace tidal::client {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Due at 1 s; tokens at 1.5 s (one), 1.7 s (three), 1.8 s (one); ended at 2 s.
RequestRecord MakeRecord() {
  RequestRecord record;
  record.scheduled = absl::Seconds(1);
  record.sent = absl::Seconds(1.2);
  record.ended = absl::Seconds(2);
  record.tokens = {{absl::Seconds(1.5), 1}, {absl::Seconds(1.7), 3}, {absl::Seconds(1.8), 1}};
  record.num_prompt_tokens = 10;
  record.attended_tokens = 25;
  record.available_tokens = 100;
  return record;
}

TEST(SummarizeTest, TakesNearestRanks) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  const LatencySummary summary = Summarize(values);
  EXPECT_EQ(summary.count, 100);
  EXPECT_DOUBLE_EQ(summary.mean, 50.5);
  EXPECT_EQ(summary.p50, 50);
  EXPECT_EQ(summary.p90, 90);
  EXPECT_EQ(summary.p95, 95);
  EXPECT_EQ(summary.p99, 99);
  EXPECT_EQ(summary.max, 100);
}

TEST(SummarizeTest, OneValueIsEveryPercentileAndNoneIsZero) {
  EXPECT_EQ(Summarize({0.25}).p50, 0.25);
  EXPECT_EQ(Summarize({0.25}).p99, 0.25);
  EXPECT_EQ(Summarize({}).count, 0);
  EXPECT_EQ(Summarize({}).max, 0);
}

TEST(LoadReportTest, LatenciesCountFromWhenTheRequestWasDue) {
  const RequestRecord record = MakeRecord();
  EXPECT_DOUBLE_EQ(*TimeToFirstToken(record), 0.5);
  EXPECT_DOUBLE_EQ(EndToEnd(record), 1.0);
}

TEST(LoadReportTest, TokensOfOneDeltaArriveTogether) {
  const std::vector<double> itl = InterTokenLatencies(MakeRecord());
  ASSERT_EQ(itl.size(), 4U);
  EXPECT_NEAR(itl[0], 0.2, 1e-9);
  EXPECT_EQ(itl[1], 0);
  EXPECT_EQ(itl[2], 0);
  EXPECT_NEAR(itl[3], 0.1, 1e-9);
  EXPECT_NEAR(*TimePerOutputToken(MakeRecord()), 0.3 / 4, 1e-9);
}

TEST(LoadReportTest, OneTokenHasNoInterTokenLatency) {
  RequestRecord record = MakeRecord();
  record.tokens.resize(1);
  EXPECT_THAT(InterTokenLatencies(record), ElementsAre());
  EXPECT_FALSE(TimePerOutputToken(record).has_value());
  ServiceLevelObjective objective;
  objective.itl = absl::Milliseconds(1);
  EXPECT_TRUE(MeetsObjective(record, objective));
}

TEST(LoadReportTest, ObjectiveBoundsEachOfItsFigures) {
  const RequestRecord record = MakeRecord();
  const auto meets = [&record](auto field, absl::Duration limit) {
    ServiceLevelObjective objective;
    objective.*field = limit;
    return MeetsObjective(record, objective);
  };
  EXPECT_TRUE(meets(&ServiceLevelObjective::ttft, absl::Seconds(0.51)));
  EXPECT_FALSE(meets(&ServiceLevelObjective::ttft, absl::Seconds(0.49)));
  EXPECT_TRUE(meets(&ServiceLevelObjective::itl, absl::Seconds(0.21)));
  EXPECT_FALSE(meets(&ServiceLevelObjective::itl, absl::Seconds(0.19)));
  EXPECT_TRUE(meets(&ServiceLevelObjective::tpot, absl::Seconds(0.08)));
  EXPECT_FALSE(meets(&ServiceLevelObjective::tpot, absl::Seconds(0.07)));
  EXPECT_TRUE(meets(&ServiceLevelObjective::e2e, absl::Seconds(1.01)));
  EXPECT_FALSE(meets(&ServiceLevelObjective::e2e, absl::Seconds(0.99)));
}

TEST(LoadReportTest, CountsOnlyWhatWasMeasured) {
  RequestRecord warm_up = MakeRecord();
  warm_up.is_warm_up = true;
  RequestRecord abandoned = MakeRecord();
  abandoned.code = absl::StatusCode::kCancelled;
  abandoned.is_abandoned = true;
  RequestRecord failed = MakeRecord();
  failed.code = absl::StatusCode::kResourceExhausted;
  failed.tokens.clear();
  failed.ended = absl::Seconds(5);
  ServiceLevelObjective objective;
  objective.ttft = absl::Seconds(1);
  const LoadReport report = MakeLoadReport({warm_up, MakeRecord(), failed, abandoned}, objective);
  EXPECT_EQ(report.num_warm_up, 1);
  EXPECT_EQ(report.num_abandoned, 1);
  EXPECT_EQ(report.num_requests, 2);
  EXPECT_EQ(report.num_succeeded, 1);
  EXPECT_EQ(report.errors_by_code.at("RESOURCE_EXHAUSTED"), 1);
  EXPECT_DOUBLE_EQ(report.measured_seconds, 4);
  EXPECT_DOUBLE_EQ(report.requests_per_second, 0.25);
  EXPECT_DOUBLE_EQ(report.generated_tokens_per_second, 1.25);
  EXPECT_DOUBLE_EQ(report.prompt_tokens_per_second, 2.5);
  EXPECT_THAT(report.goodput_per_second, ::testing::Optional(DoubleEq(0.25)));
  EXPECT_THAT(report.goodput_share, ::testing::Optional(DoubleEq(0.5)));
  EXPECT_THAT(report.attended_share, ::testing::Optional(DoubleEq(0.25)));
  EXPECT_NEAR(report.tokens_per_delta, 5.0 / 3, 1e-12);
  EXPECT_EQ(report.e2e.count, 1);
  EXPECT_NEAR(report.send_delay.max, 0.2, 1e-9);
}

TEST(LoadReportTest, OfNothingIsAllZero) {
  const LoadReport report = MakeLoadReport({}, {});
  EXPECT_EQ(report.num_requests, 0);
  EXPECT_EQ(report.requests_per_second, 0);
  EXPECT_FALSE(report.goodput_per_second.has_value());
  EXPECT_THAT(ReportText(report), HasSubstr("0 succeeded, 0 failed"));
}

TEST(LinearTicksTest, AreRoundAndCoverTheRange) {
  EXPECT_THAT(LinearTicks(10, 5), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(LinearTicks(2300, 5), ElementsAre(0, 500, 1000, 1500, 2000, 2500));
  EXPECT_THAT(LinearTicks(0, 5).back(), DoubleEq(1));
}

// Every tag is closed by its own kind, and text holds no raw markup: what XML asks for.
bool IsWellFormed(const std::string& xml) {
  std::vector<std::string> open;
  for (std::size_t at = xml.find('<'); at != std::string::npos; at = xml.find('<', at + 1)) {
    const std::size_t end = xml.find('>', at);
    if (end == std::string::npos || xml.find('<', at + 1) < end) return false;
    const std::string tag = xml.substr(at + 1, end - at - 1);
    if (tag.front() == '?' || tag.back() == '/') continue;
    if (tag.front() == '/') {
      if (open.empty() || open.back() != tag.substr(1)) return false;
      open.pop_back();
    } else {
      open.push_back(tag.substr(0, tag.find(' ')));
    }
  }
  return open.empty();
}

TEST(RenderSvgTest, IsWellFormedAndEscapesText) {
  const std::string svg =
      RenderSvg("a <b> & \"c\"", {{"T", "x", "y", {{"<series>", {{1, 2}, {2, 1000}}}}}});
  EXPECT_TRUE(IsWellFormed(svg)) << svg;
  EXPECT_THAT(svg, HasSubstr("a &lt;b&gt; &amp; &quot;c&quot;"));
  EXPECT_THAT(svg, HasSubstr("&lt;series&gt;"));
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

TEST(RenderSvgTest, LeavesOutWhatALogarithmCannotShow) {
  const std::string svg = RenderSvg("", {{"T", "x", "y", {{"s", {{1, 0}, {2, 1}, {3, 1000}}}}}});
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  std::size_t num_marks = 0;
  for (std::size_t at = 0; (at = svg.find("<circle", at)) != std::string::npos; ++at) ++num_marks;
  EXPECT_EQ(num_marks, 2U);
}

TEST(ReportsSvgTest, IsWellFormedForAnyReports) {
  LoadReport report = MakeLoadReport({MakeRecord()}, {});
  report.offered_rate = 2;
  EXPECT_TRUE(IsWellFormed(ReportsSvg({}, {})));
  const std::string svg = ReportsSvg({"t", "m", "cpu", "open loop", "full", 1}, {report});
  EXPECT_TRUE(IsWellFormed(svg));
  EXPECT_THAT(svg, HasSubstr("offered load (requests/s)"));
}

}  // namespace
}  // namespace tidal::client
