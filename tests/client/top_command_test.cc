// tidal-client top: the metrics text, what lies between two scrapes, the view.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "client/top/http_get.h"
#include "client/top/metrics_text.h"
#include "client/top/server_view.h"
#include "tests/client/program_run.h"

namespace tidal::client {
namespace {

using ::testing::DoubleEq;
using ::testing::HasSubstr;
using ::testing::Optional;

std::vector<MetricSample> Parse(absl::string_view text) {
  auto samples = ParseMetricsText(text);
  EXPECT_TRUE(samples.ok()) << samples.status();
  return samples.ok() ? *samples : std::vector<MetricSample>();
}

TEST(MetricsTextTest, ReadsNamesLabelsAndValues) {
  const auto samples = Parse(
      "# HELP a Help with {braces}.\n# TYPE a counter\n"
      "a 1.5\n"
      "b{x=\"1\",y=\"two words, a } and \\\"quotes\\\"\\\\\\n\",} 2 1700000000000\r\n"
      "c{} +Inf\n\nd\tNaN\n");
  ASSERT_EQ(samples.size(), 4U);
  EXPECT_EQ(samples[0].name, "a");
  EXPECT_EQ(samples[0].value, 1.5);
  EXPECT_EQ(samples[1].labels.at("x"), "1");
  EXPECT_EQ(samples[1].labels.at("y"), "two words, a } and \"quotes\"\\\n");
  EXPECT_EQ(samples[1].value, 2);
  EXPECT_TRUE(std::isinf(samples[2].value));
  EXPECT_TRUE(std::isnan(samples[3].value));
}

TEST(MetricsTextTest, NamesTheLineThatIsNoSample) {
  for (const char* line : {"a", "a{", "a{x} 1", "a{x=1} 1", "a{x=\"1} 1", "a{x=\"1\"", "a one",
                           "a 1 2 3", "a 1 soon", "a{x=\"1\"y=\"2\"} 1", "<html>", "{x=\"1\"} 1"}) {
    const auto samples = ParseMetricsText(std::string("good 1\n") + line + "\n");
    EXPECT_EQ(samples.status().code(), absl::StatusCode::kInvalidArgument) << line;
    EXPECT_THAT(samples.status().message(), HasSubstr("line 2 ")) << line;
  }
}

TEST(PercentilesTest, InterpolateWithinABucket) {
  // 10 up to 1, 80 from 1 to 2, 10 from 2 to 4.
  const HistogramPercentiles percentiles =
      PercentilesOf({{1, 10}, {2, 90}, {4, 100}, {HUGE_VAL, 100}});
  EXPECT_EQ(percentiles.count, 100);
  EXPECT_DOUBLE_EQ(percentiles.p50, 1.5);
  EXPECT_DOUBLE_EQ(percentiles.p90, 2);
  EXPECT_DOUBLE_EQ(percentiles.p99, 3.8);
}

TEST(PercentilesTest, BeyondTheLastBoundIsThatBoundAndNothingIsZero) {
  EXPECT_EQ(PercentilesOf({{1, 0}, {HUGE_VAL, 5}}).p50, 1);
  EXPECT_EQ(PercentilesOf({{1, 0}, {HUGE_VAL, 0}}).count, 0);
  EXPECT_EQ(PercentilesOf({}).count, 0);
}

TEST(ServerViewTest, ShowsWhatHappenedBetweenScrapes) {
  const auto earlier = Parse(
      "tidal_generation_tokens_total 100\n"
      "tidal_prompt_tokens_total{source=\"computed\"} 1000\n"
      "tidal_attention_tokens_total{kind=\"attended\"} 10\n"
      "tidal_attention_tokens_total{kind=\"available\"} 10\n"
      "tidal_requests_total{method=\"Generate\",code=\"OK\"} 4\n"
      "tidal_requests_total{method=\"Generate\",code=\"CANCELLED\"} 1\n"
      "tidal_time_to_first_token_seconds_bucket{le=\"1\"} 5\n"
      "tidal_time_to_first_token_seconds_bucket{le=\"+Inf\"} 5\n");
  const auto now = Parse(
      "tidal_requests_running 3\ntidal_requests_waiting 7\ntidal_waiting_prompt_tokens 900\n"
      "tidal_kv_cache_usage_ratio 0.5\ntidal_preemptions_total 2\n"
      "tidal_generation_tokens_total 300\n"
      "tidal_prompt_tokens_total{source=\"computed\"} 1400\n"
      "tidal_prompt_tokens_total{source=\"cached\"} 600\n"
      "tidal_attention_tokens_total{kind=\"attended\"} 35\n"
      "tidal_attention_tokens_total{kind=\"available\"} 110\n"
      "tidal_requests_total{method=\"Generate\",code=\"OK\"} 10\n"
      "tidal_requests_total{method=\"Generate\",code=\"CANCELLED\"} 3\n"
      "tidal_requests_total{method=\"Generate\",code=\"INTERNAL\"} 0\n"
      "tidal_time_to_first_token_seconds_bucket{le=\"1\"} 9\n"
      "tidal_time_to_first_token_seconds_bucket{le=\"+Inf\"} 9\n");
  const ServerView view = MakeServerView(earlier, now, absl::Seconds(2));
  EXPECT_THAT(view.running, Optional(3));
  EXPECT_THAT(view.waiting, Optional(7));
  EXPECT_EQ(view.generated_tokens_per_second, 100);
  EXPECT_EQ(view.prompt_tokens_per_second, 500);
  EXPECT_EQ(view.requests_per_second, 4);
  EXPECT_THAT(view.attended_share, Optional(DoubleEq(0.25)));
  EXPECT_EQ(view.new_preemptions, 2);
  EXPECT_EQ(view.ttft.count, 4);
  EXPECT_DOUBLE_EQ(view.ttft.p50, 0.5);
  EXPECT_EQ(view.errors_by_code.size(), 1U);
  EXPECT_EQ(view.errors_by_code.at("CANCELLED"), std::pair(2.0, 3.0));

  const std::string text = RenderServerView(view, 1000);
  for (const char* part : {"3 running   7 waiting (900 prompt tokens)", "500.0 prompt",
                           "100.0 generated", "50.0 %", "25.0 %", "CANCELLED", "p50 500.0"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
}

TEST(ServerViewTest, RestartedServerCountsFromZero) {
  const ServerView view =
      MakeServerView(Parse("tidal_generation_tokens_total 1000\n"),
                     Parse("tidal_generation_tokens_total 40\n"), absl::Seconds(1));
  EXPECT_EQ(view.generated_tokens_per_second, 40);
}

TEST(ServerViewTest, LinesFitTheWidthAndMissingMetricsAreDashes) {
  const std::string text = RenderServerView(MakeServerView({}, {}, absl::Seconds(1)), 30);
  EXPECT_THAT(text, HasSubstr("- running"));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 30U) << line;
}

TEST(HttpGetTest, SaysWhatCannotBeReached) {
  EXPECT_EQ(HttpGet("ftp://localhost/x", absl::Seconds(1)).status().code(),
            absl::StatusCode::kInvalidArgument);
  // A port that nobody may listen at.
  const auto body = HttpGet("http://127.0.0.1:1/metrics", absl::Seconds(5));
  EXPECT_EQ(body.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(body.status().message(), HasSubstr("http://127.0.0.1:1/metrics"));
}

TEST(TopCommandTest, FailsAsTheEndpointOrTheFlagsDo) {
  FakeServer server;
  EXPECT_EQ(RunProgram(server, {"top", "--once", "--metrics_target=127.0.0.1:1"}).exit_code,
            ExitCode::kUnavailable);
  EXPECT_EQ(RunProgram(server, {"top", "--interval=1ms"}).exit_code, ExitCode::kUsage);
}

}  // namespace
}  // namespace tidal::client
