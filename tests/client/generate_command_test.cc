#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/command/prompt_source.h"
#include "tests/client/program_run.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class GenerateCommandTest : public ::testing::Test {
 protected:
  GenerateCommandTest() {
    server_.inference().events = {StartedEvent(), ProgressEvent(4000, 8000),
                                  DeltaEvent("velvet ", 10), DeltaEvent("anchor", 11),
                                  FinishedEvent()};
  }

  const v1::GenerateStreamRequest& request() { return server_.inference().stream_request; }

  FakeServer server_;
};

std::vector<nlohmann::json> ParseLines(const std::string& text) {
  std::vector<nlohmann::json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

TEST_F(GenerateCommandTest, PrintsNothingButTheTextOnStandardOutput) {
  const ProgramResult result = RunProgram(server_, {"generate", "--prompt=where?"});
  EXPECT_EQ(result.exit_code, ExitCode::kOk);
  EXPECT_EQ(result.out, "velvet anchor");
  EXPECT_EQ(request().text(), "where?");
}

TEST_F(GenerateCommandTest, PrintsSummaryOnStandardError) {
  const ProgramResult result = RunProgram(server_, {"generate", "where?"});
  EXPECT_EQ(result.err,
            "prompt tokens        8000 (0 from the cache)\n"
            "generated tokens     5\n"
            "time to first token  1.250 s\n"
            "decoding             8.0 tokens/s\n"
            "attention            tidal, token budget 256, attended share 25.00 % (1000 of 4000)\n"
            "finish reason        stop_string \"\\n\"\n");
}

TEST_F(GenerateCommandTest, EndsTheLineOnATerminalOnly) {
  ProgramInput terminal;
  terminal.out_is_terminal = true;
  EXPECT_EQ(RunProgram(server_, {"generate", "where?"}, terminal).out, "velvet anchor\n");
  server_.inference().events = {DeltaEvent("line\n", 1), FinishedEvent()};
  EXPECT_EQ(RunProgram(server_, {"generate", "where?"}, terminal).out, "line\n");
}

TEST_F(GenerateCommandTest, ShowsPrefillProgressOnATerminalAndClearsIt) {
  ProgramInput terminal;
  terminal.err_is_terminal = true;
  const ProgramResult result = RunProgram(server_, {"generate", "where?"}, terminal);
  EXPECT_THAT(result.err, HasSubstr("\rprefill 4000 of 8000 tokens (50 %)\r\033[K"));
  EXPECT_THAT(RunProgram(server_, {"generate", "where?"}).err, Not(HasSubstr("prefill")));
}

TEST_F(GenerateCommandTest, JsonPrintsEachEventOnALine) {
  const ProgramResult result = RunProgram(server_, {"--json", "generate", "where?"});
  EXPECT_EQ(result.exit_code, ExitCode::kOk);
  EXPECT_EQ(result.err, "");
  const std::vector<nlohmann::json> lines = ParseLines(result.out);
  ASSERT_EQ(lines.size(), 5U);
  EXPECT_EQ(lines[0]["event"], "started");
  EXPECT_EQ(lines[0]["seed"], 18446744073709551615U);
  EXPECT_EQ(lines[0]["attention"]["mode"], "tidal");
  EXPECT_EQ(lines[0]["attention"]["selection_scope"], "kv_head");
  EXPECT_EQ(lines[0]["attention"]["full_layers"], (std::vector<int>{0, 1}));
  EXPECT_EQ(
      lines[1],
      (nlohmann::json{{"event", "progress"}, {"prefilled_tokens", 4000}, {"total_tokens", 8000}}));
  EXPECT_EQ(lines[2]["text"], "velvet ");
  EXPECT_EQ(lines[2]["token_ids"], std::vector<int>{10});
  EXPECT_EQ(lines[4]["event"], "finished");
  EXPECT_EQ(lines[4]["finish_reason"], "stop_string");
  EXPECT_EQ(lines[4]["matched_stop"]["text"], "\n");
  EXPECT_EQ(lines[4]["attended_share"], 0.25);
  EXPECT_EQ(lines[4]["decode_tokens_per_second"], 8.0);
}

TEST_F(GenerateCommandTest, SendsEveryFlag) {
  const ProgramResult result = RunProgram(server_, {"generate",
                                                    "--prompt=p",
                                                    "--max_new_tokens=9",
                                                    "--min_new_tokens=2",
                                                    "--stop=a,b",
                                                    "--stop=c",
                                                    "--stop_token_ids=5,6",
                                                    "--ignore_eos",
                                                    "--include_stop_in_output=false",
                                                    "--temperature=0.5",
                                                    "--top_p=0.9",
                                                    "--top_k=40",
                                                    "--min_p=0.05",
                                                    "--repetition_penalty=1.25",
                                                    "--presence_penalty=-0.5",
                                                    "--frequency_penalty=0.75",
                                                    "--seed=42",
                                                    "--logit_bias=3:1.5,4:-2",
                                                    "--attention=tidal",
                                                    "--token_budget=128",
                                                    "--correction_interval=16",
                                                    "--num_top_logprobs=3",
                                                    "--noskip_special_tokens",
                                                    "--priority=-7",
                                                    "--request_id=mine"});
  ASSERT_EQ(result.exit_code, ExitCode::kOk) << result.err;
  const auto& sampling = request().sampling();
  EXPECT_EQ(sampling.temperature(), 0.5F);
  EXPECT_EQ(sampling.top_p(), 0.9F);
  EXPECT_EQ(sampling.top_k(), 40);
  EXPECT_EQ(sampling.min_p(), 0.05F);
  EXPECT_EQ(sampling.repetition_penalty(), 1.25F);
  EXPECT_EQ(sampling.presence_penalty(), -0.5F);
  EXPECT_EQ(sampling.frequency_penalty(), 0.75F);
  EXPECT_EQ(sampling.seed(), 42U);
  EXPECT_EQ(sampling.logit_bias().at(3), 1.5F);
  EXPECT_EQ(sampling.logit_bias().at(4), -2.0F);
  const auto& stopping = request().stopping();
  EXPECT_EQ(stopping.max_new_tokens(), 9);
  EXPECT_EQ(stopping.min_new_tokens(), 2);
  EXPECT_THAT(stopping.stop_strings(), ElementsAre("a,b", "c"));
  EXPECT_THAT(stopping.stop_token_ids(), ElementsAre(5, 6));
  EXPECT_TRUE(stopping.ignore_eos());
  EXPECT_TRUE(stopping.has_include_stop_in_output());
  EXPECT_FALSE(stopping.include_stop_in_output());
  EXPECT_EQ(request().attention().mode(), v1::ATTENTION_MODE_TIDAL);
  EXPECT_EQ(request().attention().token_budget(), 128);
  EXPECT_EQ(request().attention().correction_interval(), 16);
  EXPECT_EQ(request().output().num_top_logprobs(), 3);
  EXPECT_TRUE(request().output().has_skip_special_tokens());
  EXPECT_FALSE(request().output().skip_special_tokens());
  EXPECT_EQ(request().priority(), -7);
  EXPECT_EQ(request().request_id(), "mine");
}

TEST_F(GenerateCommandTest, LeavesAbsentFieldsToTheServer) {
  ASSERT_EQ(RunProgram(server_, {"generate", "p"}).exit_code, ExitCode::kOk);
  v1::GenerateStreamRequest expected;
  expected.set_text("p");
  expected.mutable_sampling();
  expected.mutable_stopping();
  expected.mutable_output();
  expected.mutable_attention();
  EXPECT_EQ(request().SerializeAsString(), expected.SerializeAsString());
}

TEST_F(GenerateCommandTest, TakesTokenIdsAsThePrompt) {
  ASSERT_EQ(RunProgram(server_, {"generate", "--token_ids=1,2,3"}).exit_code, ExitCode::kOk);
  EXPECT_THAT(request().token_ids().ids(), ElementsAre(1, 2, 3));
}

TEST_F(GenerateCommandTest, ReadsPromptFromFile) {
  const std::string path = absl::StrCat(::testing::TempDir(), getpid(), "_prompt.txt");
  std::ofstream(path, std::ios::binary) << "line one\nline two\n";
  const ProgramResult result = RunProgram(server_, {"generate", "--prompt_file", path});
  std::remove(path.c_str());
  EXPECT_EQ(result.exit_code, ExitCode::kOk);
  EXPECT_EQ(request().text(), "line one\nline two\n");
}

TEST_F(GenerateCommandTest, ReadsPromptFromStandardInput) {
  ProgramInput input;
  input.in = "piped\n";
  for (const auto& arguments : std::vector<std::vector<std::string>>{
           {"generate"}, {"generate", "-"}, {"generate", "--prompt_file=-"}}) {
    EXPECT_EQ(RunProgram(server_, arguments, input).exit_code, ExitCode::kOk);
    EXPECT_EQ(request().text(), "piped\n");
    server_.inference().stream_request.Clear();
  }
}

TEST_F(GenerateCommandTest, WithoutPromptOnATerminalIsAUsageError) {
  ProgramInput terminal;
  terminal.in_is_terminal = true;
  const ProgramResult result = RunProgram(server_, {"generate"}, terminal);
  EXPECT_EQ(result.exit_code, ExitCode::kUsage);
  EXPECT_THAT(result.err, HasSubstr("no prompt"));
}

TEST_F(GenerateCommandTest, BadCommandLinesAreUsageErrors) {
  for (const auto& arguments :
       std::vector<std::vector<std::string>>{{"generate", "--prompt=a", "b"},
                                             {"generate", "a", "b"},
                                             {"generate", "--prompt=a", "--token_ids=1"},
                                             {"generate", "--token_ids=1,x"},
                                             {"generate", "--token_ids="},
                                             {"generate", "--attention=dense", "a"},
                                             {"generate", "--logit_bias=5", "a"},
                                             {"generate", "--logit_bias=5:1,5:2", "a"},
                                             {"generate", "--prompt_file=/nonexistent/prompt"},
                                             {"generate", "--prompt_file=/"},
                                             {"generate", "--prompt=\xFF"},
                                             {"generate", "--stop=\xFF", "a"},
                                             {"generate", "--colour=red", "a"}}) {
    const ProgramResult result = RunProgram(server_, arguments);
    EXPECT_EQ(result.exit_code, ExitCode::kUsage) << arguments.back();
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err, HasSubstr("tidal-client: "));
  }
}

TEST_F(GenerateCommandTest, RefusesPromptOfTooManyBytes) {
  ProgramInput input;
  input.in.assign(kMaxPromptBytes + 1, 'a');
  const ProgramResult result = RunProgram(server_, {"generate"}, input);
  EXPECT_EQ(result.exit_code, ExitCode::kUsage);
  EXPECT_THAT(result.err, HasSubstr(std::to_string(kMaxPromptBytes)));
}

TEST_F(GenerateCommandTest, ShowsFieldViolations) {
  google::rpc::BadRequest bad_request;
  auto* violation = bad_request.add_field_violations();
  violation->set_field("sampling.top_p");
  violation->set_description("is 2; it must be at most 1");
  server_.inference().events.clear();
  server_.inference().status =
      StatusWithDetails(grpc::StatusCode::INVALID_ARGUMENT, "bad request", bad_request);

  const ProgramResult text = RunProgram(server_, {"generate", "--top_p=2", "a"});
  EXPECT_EQ(text.exit_code, ExitCode::kInvalidRequest);
  EXPECT_EQ(text.out, "");
  EXPECT_EQ(text.err,
            "tidal-client: INVALID_ARGUMENT: bad request\n"
            "  sampling.top_p: is 2; it must be at most 1\n");

  const ProgramResult json = RunProgram(server_, {"generate", "--json", "--top_p=2", "a"});
  EXPECT_EQ(json.exit_code, ExitCode::kInvalidRequest);
  const auto lines = ParseLines(json.out);
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_EQ(lines[0]["event"], "error");
  EXPECT_EQ(lines[0]["code"], "INVALID_ARGUMENT");
  EXPECT_EQ(lines[0]["field_violations"][0]["field"], "sampling.top_p");
}

TEST_F(GenerateCommandTest, ShowsRetryDelay) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(2);
  server_.inference().events.clear();
  server_.inference().status =
      StatusWithDetails(grpc::StatusCode::RESOURCE_EXHAUSTED, "queue is full", retry);
  const ProgramResult result = RunProgram(server_, {"generate", "--json", "a"});
  EXPECT_EQ(result.exit_code, ExitCode::kResourceExhausted);
  EXPECT_THAT(result.err, HasSubstr("retry after 2s"));
  EXPECT_EQ(ParseLines(result.out)[0]["retry_delay_seconds"], 2.0);
}

TEST_F(GenerateCommandTest, ErrorInMidStreamKeepsTheTextSoFar) {
  server_.inference().events = {StartedEvent(), DeltaEvent("vel", 1)};
  server_.inference().status = grpc::Status(grpc::StatusCode::INTERNAL, "device fault");
  ProgramInput terminal;
  terminal.out_is_terminal = true;
  const ProgramResult result = RunProgram(server_, {"generate", "a"}, terminal);
  EXPECT_EQ(result.exit_code, ExitCode::kOther);
  EXPECT_EQ(result.out, "vel\n");
  EXPECT_EQ(result.err, "tidal-client: INTERNAL: device fault\n");
}

TEST_F(GenerateCommandTest, TimeoutEndsTheStream) {
  server_.inference().events.clear();
  server_.inference().hold_stream_open = true;
  const ProgramResult result = RunProgram(server_, {"generate", "--timeout=20ms", "a"});
  EXPECT_EQ(result.exit_code, ExitCode::kDeadlineExceeded);
}

TEST_F(GenerateCommandTest, TriesAgainWhileTheServerIsUnavailable) {
  server_.inference().events = {StartedEvent(), DeltaEvent("vel", 1), FinishedEvent()};
  server_.inference().num_unavailable = 1;
  EXPECT_EQ(RunProgram(server_, {"generate", "a"}).exit_code, ExitCode::kUnavailable);
  server_.inference().num_unavailable = 1;
  const ProgramResult result = RunProgram(server_, {"generate", "--retry_for=60s", "a"});
  EXPECT_EQ(result.exit_code, ExitCode::kOk);
  EXPECT_EQ(result.out, "vel");
}

TEST_F(GenerateCommandTest, DoesNotTryAgainOnceTheStreamHasBegun) {
  server_.inference().events = {StartedEvent(), DeltaEvent("vel", 1)};
  server_.inference().status = grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  const ProgramResult result = RunProgram(server_, {"generate", "--retry_for=60s", "a"});
  EXPECT_EQ(result.exit_code, ExitCode::kUnavailable);
  EXPECT_EQ(result.out, "vel");
}

TEST_F(GenerateCommandTest, WithoutStreamPrintsTheWholeResponse) {
  auto& response = server_.inference().generate_response;
  const v1::GenerateStreamResponse finished = FinishedEvent();
  *response.mutable_usage() = finished.finished().usage();
  *response.mutable_timings() = finished.finished().timings();
  response.mutable_attention()->set_mode(v1::ATTENTION_MODE_FULL);
  v1::Choice* choice = response.add_choices();
  choice->set_text("velvet");
  choice->set_finish_reason(v1::FINISH_REASON_LENGTH);

  const ProgramResult text =
      RunProgram(server_, {"generate", "--no_stream", "--attention=full", "--top_k=3", "where?"});
  EXPECT_EQ(text.exit_code, ExitCode::kOk);
  EXPECT_EQ(text.out, "velvet");
  EXPECT_THAT(text.err, HasSubstr("attention            full, attended share 25.00 %"));
  EXPECT_THAT(text.err, HasSubstr("finish reason        length\n"));
  EXPECT_EQ(server_.inference().generate_request.text(), "where?");
  EXPECT_EQ(server_.inference().generate_request.sampling().top_k(), 3);

  const auto lines =
      ParseLines(RunProgram(server_, {"generate", "--no_stream", "--json", "where?"}).out);
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_EQ(lines[0]["event"], "response");
  EXPECT_EQ(lines[0]["choices"][0]["text"], "velvet");
  EXPECT_EQ(lines[0]["choices"][0]["matched_stop"], nullptr);
}

}  // namespace
}  // namespace tidal::client
