// tidal-client bench against a scripted server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "client/bench/load_runner.h"
#include "tests/client/program_run.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;
using ::testing::HasSubstr;

class BenchCommandTest : public testing::Test {
 protected:
  BenchCommandTest() {
    server_.model().response_script.set_vocab_size(1000);
    server_.model().response_script.set_model_name("fake");
    v1::GenerateStreamResponse pair = DeltaEvent("b", 2);
    pair.mutable_delta()->add_token_ids(3);
    server_.inference().events = {StartedEvent(), DeltaEvent("a", 1), pair, FinishedEvent()};
  }

  nlohmann::json RunJson(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"bench", "--json"});
    const ProgramResult result = RunProgram(server_, arguments);
    EXPECT_EQ(result.exit_code, ExitCode::kOk) << result.err;
    return nlohmann::json::parse(result.out);
  }

  FakeServer server_;
};

TEST_F(BenchCommandTest, ClosedLoopCountsRequestsAndTokens) {
  const auto json = RunJson({"--num_requests=5", "--warmup_requests=2"});
  const auto& point = json["points"].at(0);
  EXPECT_EQ(point["concurrency"], 1);
  EXPECT_EQ(point["requests"]["measured"], 5);
  EXPECT_EQ(point["requests"]["succeeded"], 5);
  EXPECT_EQ(point["requests"]["warm_up"], 2);
  EXPECT_EQ(point["generated_tokens"], 15);
  EXPECT_EQ(point["tokens_per_delta"], 1.5);
  EXPECT_EQ(point["inter_token_latency_seconds"]["count"], 10);
  EXPECT_EQ(point["attended_share"], 0.25);
  EXPECT_EQ(point["goodput_share"], nullptr);
  EXPECT_EQ(json["setup"]["model"], "fake");
}

TEST_F(BenchCommandTest, SendsLengthsAndOptions) {
  RunJson({"--num_requests=1", "--prompt_tokens=33", "--output_tokens=7", "--attention=tidal",
           "--token_budget=128", "--temperature=0"});
  const v1::GenerateStreamRequest& request = server_.inference().stream_request;
  EXPECT_EQ(request.token_ids().ids_size(), 33);
  EXPECT_EQ(request.stopping().max_new_tokens(), 7);
  EXPECT_TRUE(request.stopping().ignore_eos());
  EXPECT_EQ(request.attention().mode(), v1::ATTENTION_MODE_TIDAL);
  EXPECT_EQ(request.attention().token_budget(), 128);
  EXPECT_TRUE(request.sampling().has_temperature());
}

TEST_F(BenchCommandTest, ErrorsAreCountedByCodeAndMissTheObjective) {
  server_.inference().events.clear();
  server_.inference().status = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
  const ProgramResult result =
      RunProgram(server_, {"bench", "--json", "--num_requests=3", "--slo_ttft=1h"});
  EXPECT_EQ(result.exit_code, ExitCode::kOther);
  EXPECT_THAT(result.err, HasSubstr("no request succeeded"));
  const auto point = nlohmann::json::parse(result.out)["points"].at(0);
  EXPECT_EQ(point["errors"]["RESOURCE_EXHAUSTED"], 3);
  EXPECT_EQ(point["goodput_share"], 0);
}

TEST_F(BenchCommandTest, WritesJsonAndPicture) {
  const std::string json_path = absl::StrCat(testing::TempDir(), getpid(), "_bench.json");
  const std::string svg_path = absl::StrCat(testing::TempDir(), getpid(), "_bench.svg");
  const ProgramResult result =
      RunProgram(server_, {"bench", "--concurrency=1,1", "--num_requests=2", "--slo_ttft=1h",
                           "--json_output=" + json_path, "--svg_output=" + svg_path});
  EXPECT_EQ(result.exit_code, ExitCode::kOk) << result.err;
  EXPECT_THAT(result.out, HasSubstr("100.0 % of requests meet the objective"));
  EXPECT_EQ(nlohmann::json::parse(std::ifstream(json_path))["points"].size(), 2U);
  std::ostringstream svg;
  svg << std::ifstream(svg_path).rdbuf();
  EXPECT_THAT(svg.str(), HasSubstr("</svg>"));
}

TEST_F(BenchCommandTest, RefusesWrongFlags) {
  for (const std::vector<std::string>& flags :
       std::vector<std::vector<std::string>>{{"--rate=0"},
                                             {"--concurrency=x"},
                                             {"--rate=1", "--concurrency=1"},
                                             {"--num_requests=0"},
                                             {"--duration=0s"},
                                             {"--connections=0"},
                                             {"--prompt_tokens=none"},
                                             {"--trace=/nonexistent/trace"},
                                             {"--json_output=/nonexistent/folder/file"}}) {
    std::vector<std::string> arguments = flags;
    arguments.insert(arguments.begin(), "bench");
    const ProgramResult result = RunProgram(server_, arguments);
    EXPECT_EQ(result.exit_code, ExitCode::kUsage) << flags.front();
    EXPECT_THAT(result.err, HasSubstr("tidal-client: ")) << flags.front();
  }
}

TEST_F(BenchCommandTest, InterruptEndsWithTheReportOfWhatWasMeasured) {
  server_.inference().hold_stream_open = true;
  InferenceClient client(server_.MakeChannel());
  LoadRunner* running = nullptr;
  LoadRunner runner(
      [&client](std::size_t, const PlannedRequest&, StreamCall::EventCallback on_event,
                StreamCall::DoneCallback on_done) {
        return client.StartGenerateStream({}, absl::InfiniteFuture(), std::move(on_event),
                                          std::move(on_done));
      },
      [&running](const LoadProgress& progress) {
        if (progress.num_tokens == 3) running->Interrupt();
      },
      absl::Milliseconds(1));
  running = &runner;
  LoadPoint point;
  point.requests.resize(10);
  point.concurrency = 1;
  const std::vector<RequestRecord> records = runner.Run(point);
  ASSERT_EQ(records.size(), 1U);
  EXPECT_TRUE(records[0].is_abandoned);
  EXPECT_EQ(records[0].tokens.size(), 2U);
  EXPECT_TRUE(runner.interrupted());
  EXPECT_TRUE(runner.Run(point).empty());
}

TEST_F(BenchCommandTest, OpenLoopCountsFromTheArrivalThoughItSendsLate) {
  InferenceClient client(server_.MakeChannel());
  LoadRunner runner(
      [&client](std::size_t, const PlannedRequest&, StreamCall::EventCallback on_event,
                StreamCall::DoneCallback on_done) {
        return client.StartGenerateStream({}, absl::InfiniteFuture(), std::move(on_event),
                                          std::move(on_done));
      },
      [](const LoadProgress&) {}, absl::Seconds(1));
  LoadPoint point;
  // As if it had been due an hour ago.
  point.requests = {{-absl::Hours(1), 1, 1}};
  const std::vector<RequestRecord> records = runner.Run(point);
  ASSERT_EQ(records.size(), 1U);
  EXPECT_EQ(records[0].code, absl::StatusCode::kOk);
  EXPECT_EQ(records[0].scheduled, -absl::Hours(1));
  EXPECT_GE(records[0].sent, absl::ZeroDuration());
  EXPECT_GE(records[0].ended - records[0].scheduled, absl::Hours(1));
}

}  // namespace
}  // namespace tidal::client
