// What a load is made of: random lengths, arrivals, traces, prompts.
#include "client/bench/load_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "client/bench/bench_flags.h"
#include "client/bench/prompt_maker.h"

namespace tidal::client {
namespace {

using ::testing::HasSubstr;

std::vector<int32_t> Draw(absl::string_view text, int count) {
  const auto lengths = LengthDistribution::Parse(text);
  EXPECT_TRUE(lengths.ok()) << lengths.status();
  Random random(7);
  std::vector<int32_t> drawn;
  for (int i = 0; i < count; ++i) drawn.push_back(lengths->Draw(random));
  return drawn;
}

TEST(LengthDistributionTest, FixedAndUniformKeepTheirRanges) {
  EXPECT_THAT(Draw("12", 3), ::testing::ElementsAre(12, 12, 12));
  EXPECT_THAT(Draw("fixed:12", 1), ::testing::ElementsAre(12));
  const std::vector<int32_t> drawn = Draw("uniform:3:5", 300);
  EXPECT_EQ(std::set<int32_t>(drawn.begin(), drawn.end()), (std::set<int32_t>{3, 4, 5}));
}

TEST(LengthDistributionTest, LognormalHasItsMedianAndMaximum) {
  std::vector<int32_t> drawn = Draw("lognormal:200:1:1000", 10001);
  std::sort(drawn.begin(), drawn.end());
  EXPECT_NEAR(drawn[5000], 200, 10);
  // One sigma above the median, where 84.1 % lie below.
  EXPECT_NEAR(drawn[8413], 200 * std::exp(1.0), 30);
  EXPECT_EQ(drawn.back(), 1000);
  EXPECT_GE(drawn.front(), 1);
}

TEST(LengthDistributionTest, FileListsLengths) {
  const std::string path = absl::StrCat(testing::TempDir(), getpid(), "_lengths.txt");
  std::ofstream(path) << "5\n\n 9 \n";
  const std::vector<int32_t> drawn = Draw("file:" + path, 100);
  EXPECT_EQ(std::set<int32_t>(drawn.begin(), drawn.end()), (std::set<int32_t>{5, 9}));
  std::ofstream(path) << "5\nnine\n";
  EXPECT_THAT(LengthDistribution::Parse("file:" + path).status().message(),
              HasSubstr(":2: 'nine'"));
}

TEST(LengthDistributionTest, RefusesWhatIsNoDistribution) {
  for (const char* text :
       {"", "0", "-3", "x", "uniform:5", "uniform:5:3", "lognormal:5:-1:9", "lognormal:5:1",
        "normal:5:1", "99999999", "file:/nonexistent/lengths", "fixed:1:2"}) {
    EXPECT_EQ(LengthDistribution::Parse(text).status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST(PoissonArrivalsTest, GapsAreExponentialOfTheRate) {
  const auto arrivals = PoissonArrivals(50, 20000, absl::InfiniteDuration(), 3);
  ASSERT_EQ(arrivals.size(), 20000U);
  EXPECT_TRUE(std::is_sorted(arrivals.begin(), arrivals.end()));
  std::vector<double> gaps;
  for (std::size_t i = 1; i < arrivals.size(); ++i) {
    gaps.push_back(absl::ToDoubleSeconds(arrivals[i] - arrivals[i - 1]));
  }
  const double mean = std::accumulate(gaps.begin(), gaps.end(), 0.0) / 19999;
  EXPECT_NEAR(mean, 0.02, 0.0006);
  // An exponential's deviation is its mean, and 1/e of the gaps are longer than that.
  const auto num_long =
      std::count_if(gaps.begin(), gaps.end(), [](double gap) { return gap > .02; });
  EXPECT_NEAR(static_cast<double>(num_long) / 19999, std::exp(-1), 0.015);
}

TEST(PoissonArrivalsTest, FollowsSeedAndDuration) {
  const auto first = PoissonArrivals(10, 100, absl::Seconds(2), 1);
  EXPECT_EQ(first, PoissonArrivals(10, 100, absl::Seconds(2), 1));
  EXPECT_NE(first, PoissonArrivals(10, 100, absl::Seconds(2), 2));
  EXPECT_LE(first.back(), absl::Seconds(2));
  EXPECT_LT(first.size(), 100U);
}

TEST(ParseTraceTest, ReadsJsonLinesAndCsvAlike) {
  const auto json = ParseTrace(
      "{\"arrival_seconds\":1.5,\"prompt_tokens\":10,\"output_tokens\":2,\"user\":\"a\"}\n\n"
      "{\"arrival_seconds\":0.5,\"prompt_tokens\":20,\"output_tokens\":3}\n");
  const auto csv = ParseTrace(
      "prompt_tokens, output_tokens,extra,arrival_seconds\r\n10,2,x,1.5\r\n20,3,y,0.5\r\n");
  for (const auto& trace : {json, csv}) {
    ASSERT_TRUE(trace.ok()) << trace.status();
    ASSERT_EQ(trace->size(), 2U);
    EXPECT_EQ((*trace)[0].arrival, absl::Milliseconds(500));
    EXPECT_EQ((*trace)[0].num_prompt_tokens, 20);
    EXPECT_EQ((*trace)[0].num_output_tokens, 3);
    EXPECT_EQ((*trace)[1].arrival, absl::Milliseconds(1500));
  }
}

TEST(ParseTraceTest, NamesLineFieldAndValue) {
  const std::string header = "arrival_seconds,prompt_tokens,output_tokens\n";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "no requests"},
      {"a,b\n", "line 1: the header lacks the column arrival_seconds"},
      {header + "1,2\n", "line 2: output_tokens is ''"},
      {header + "-1,2,3\n", "line 2: arrival_seconds is -1"},
      {header + "nan,2,3\n", "line 2: arrival_seconds is nan"},
      {header + "1,2.5,3\n", "line 2: prompt_tokens is 2.5"},
      {header + "1,2,0\n", "line 2: output_tokens is 0"},
      {"{\"arrival_seconds\":1}\n", "line 1: it lacks the number prompt_tokens"},
      {"{\"arrival\n", "line 1: it is no JSON object"}};
  for (const auto& [text, message] : cases) {
    EXPECT_THAT(ParseTrace(text).status().message(), HasSubstr(message)) << text;
  }
}

TEST(PromptMakerTest, PromptsShareThePrefixAskedForAndNoMore) {
  inference::v1::GetModelInfoResponse info;
  info.set_vocab_size(1000);
  info.add_bos_token_ids(1);
  info.add_eos_token_ids(2);
  const auto maker = PromptMaker::Create(info, 4, 9);
  ASSERT_TRUE(maker.ok()) << maker.status();
  inference::v1::TokenIds first;
  inference::v1::TokenIds second;
  inference::v1::TokenIds again;
  maker->Fill(0, 32, &first);
  maker->Fill(1, 32, &second);
  maker->Fill(0, 32, &again);
  ASSERT_EQ(first.ids_size(), 32);
  EXPECT_EQ(first.ids(0), 1);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(first.ids(i), second.ids(i));
  EXPECT_NE(first.SerializeAsString(), second.SerializeAsString());
  EXPECT_EQ(first.SerializeAsString(), again.SerializeAsString());
  EXPECT_EQ(std::count(first.ids().begin(), first.ids().end(), 2), 0);
}

TEST(PromptMakerTest, RefusesAModelWithoutVocabulary) {
  EXPECT_EQ(PromptMaker::Create({}, 0, 1).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(MakeLoadPointsTest, OnePointForEachRateAndWarmUpBesides) {
  BenchFlags flags;
  flags.rates = {1, 10};
  flags.num_requests = 5;
  flags.num_warm_up = 2;
  const auto points = MakeLoadPoints(flags);
  ASSERT_TRUE(points.ok()) << points.status();
  ASSERT_EQ(points->size(), 2U);
  EXPECT_EQ((*points)[0].requests.size(), 7U);
  EXPECT_EQ((*points)[1].offered_rate, 10);
  EXPECT_EQ((*points)[1].num_warm_up, 2);
  EXPECT_FALSE((*points)[1].concurrency.has_value());
}

TEST(MakeLoadPointsTest, RefusesContradictions) {
  BenchFlags flags;
  flags.rates = {1};
  flags.concurrencies = {1};
  EXPECT_THAT(MakeLoadPoints(flags).status().message(), HasSubstr("exclude each other"));
}

}  // namespace
}  // namespace tidal::client
