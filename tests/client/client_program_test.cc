#include "client/command/client_program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/client/program_run.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;
using ::testing::HasSubstr;

TEST(ClientProgramTest, UnknownCommandShowsUsage) {
  FakeServer server;
  const ProgramResult result = RunProgram(server, {"sing"});
  EXPECT_EQ(result.exit_code, ExitCode::kUsage);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("unknown command 'sing'"));
  EXPECT_THAT(result.err, HasSubstr("usage: tidal-client"));
}

TEST(ClientProgramTest, NoCommandShowsUsage) {
  FakeServer server;
  const ProgramResult result = RunProgram(server, {});
  EXPECT_EQ(result.exit_code, ExitCode::kUsage);
  EXPECT_THAT(result.err, HasSubstr("usage: tidal-client"));
}

TEST(ClientProgramTest, HelpListsCommandsAndExitCodes) {
  FakeServer server;
  const ProgramResult result = RunProgram(server, {"--help"});
  EXPECT_EQ(result.exit_code, ExitCode::kOk);
  for (const char* text : {"generate", "tokenize", "info", "health", "--target", "130"}) {
    EXPECT_THAT(result.out, HasSubstr(text));
  }
}

TEST(ClientProgramTest, EachCommandHasHelp) {
  FakeServer server;
  for (const std::string command : {"generate", "tokenize", "info", "health", "bench", "top"}) {
    for (const auto& arguments : {std::vector<std::string>{command, "--help"},
                                  std::vector<std::string>{"--help", command}}) {
      const ProgramResult result = RunProgram(server, arguments);
      EXPECT_EQ(result.exit_code, ExitCode::kOk);
      EXPECT_THAT(result.out, HasSubstr("usage: tidal-client " + command));
      EXPECT_THAT(result.out, HasSubstr("--timeout"));
    }
  }
}

TEST(ClientProgramTest, TargetIsTakenBeforeAndAfterTheCommand) {
  FakeServer server;
  for (const auto& arguments : {std::vector<std::string>{"--target=there:1", "info"},
                                std::vector<std::string>{"info", "--target=there:1"}}) {
    std::istringstream in;
    std::ostringstream out;
    std::ostringstream err;
    Console console{in, out, err};
    CallCanceller canceller;
    std::string target;
    const auto make_channel = [&](const std::string& name, const ChannelOptions& /*options*/) {
      target = name;
      return server.MakeChannel();
    };
    EXPECT_EQ(RunClientProgram(arguments, console, make_channel, canceller), ExitCode::kOk);
    EXPECT_EQ(target, "there:1");
  }
}

TEST(ClientProgramTest, CommandsWithoutOperandsRefuseThem) {
  FakeServer server;
  EXPECT_EQ(RunProgram(server, {"info", "more"}).exit_code, ExitCode::kUsage);
  EXPECT_EQ(RunProgram(server, {"health", "more"}).exit_code, ExitCode::kUsage);
}

TEST(TokenizeCommandTest, PrintsIdsAndPieces) {
  FakeServer server;
  auto& response = server.inference().tokenize_response;
  response.add_token_ids(1);
  response.add_tokens("<s>");
  response.add_token_ids(260);
  response.add_tokens(" a\n\xF0");
  const ProgramResult text = RunProgram(server, {"tokenize", "--prompt", " a"});
  EXPECT_EQ(text.exit_code, ExitCode::kOk);
  EXPECT_EQ(text.out, "1\t<s>\n260\t a\\n\xF0\n");
  EXPECT_EQ(text.err, "2 tokens\n");
  EXPECT_EQ(server.inference().tokenize_request.text(), " a");
  EXPECT_TRUE(server.inference().tokenize_request.add_special_tokens());

  const ProgramResult json =
      RunProgram(server, {"tokenize", "--json", "--noadd_special_tokens", " a"});
  EXPECT_EQ(json.exit_code, ExitCode::kOk);
  const auto tokens = nlohmann::json::parse(json.out)["tokens"];
  EXPECT_EQ(tokens[0]["token_id"], 1);
  EXPECT_EQ(tokens[0]["token"], "<s>");
  EXPECT_EQ(tokens[1]["bytes"], (std::vector<int>{' ', 'a', '\n', 0xF0}));
  EXPECT_TRUE(server.inference().tokenize_request.has_add_special_tokens());
  EXPECT_FALSE(server.inference().tokenize_request.add_special_tokens());
}

TEST(InfoCommandTest, PrintsTableAndJson) {
  FakeServer server;
  v1::GetModelInfoResponse& info = server.model().response_script;
  info.set_model_name("needle");
  info.set_num_query_heads(8);
  info.set_num_kv_heads(2);
  info.add_eos_token_ids(2);
  info.mutable_default_attention()->set_mode(v1::ATTENTION_MODE_TIDAL);
  info.mutable_default_attention()->set_token_budget(512);
  info.mutable_limits()->set_kv_cache_tokens(5000000000);

  const ProgramResult text = RunProgram(server, {"info"});
  EXPECT_EQ(text.exit_code, ExitCode::kOk);
  EXPECT_THAT(text.out, HasSubstr("model                   needle\n"));
  EXPECT_THAT(text.out, HasSubstr("query / KV heads        8 / 2\n"));
  EXPECT_THAT(text.out, HasSubstr("begin tokens            none\n"));
  EXPECT_THAT(text.out, HasSubstr("token budget            512\n"));
  EXPECT_THAT(text.out, HasSubstr("KV cache tokens         5000000000\n"));

  const auto json = nlohmann::json::parse(RunProgram(server, {"info", "--json"}).out);
  EXPECT_EQ(json["model_name"], "needle");
  EXPECT_EQ(json["eos_token_ids"], std::vector<int>{2});
  EXPECT_EQ(json["default_attention"]["token_budget"], 512);
  EXPECT_EQ(json["limits"]["kv_cache_tokens"], 5000000000);
}

TEST(HealthCommandTest, IsOkOnlyWhereServing) {
  FakeServer server;
  const ProgramResult serving = RunProgram(server, {"health"});
  EXPECT_EQ(serving.exit_code, ExitCode::kOk);
  EXPECT_EQ(serving.out, "SERVING\n");
  const ProgramResult draining = RunProgram(server, {"health", "--service=draining"});
  EXPECT_EQ(draining.exit_code, ExitCode::kUnavailable);
  EXPECT_EQ(draining.out, "NOT_SERVING\n");
  const ProgramResult unknown = RunProgram(server, {"health", "--service=nobody"});
  EXPECT_EQ(unknown.exit_code, ExitCode::kInvalidRequest);
  EXPECT_THAT(unknown.err, HasSubstr("NOT_FOUND"));
  const auto json = nlohmann::json::parse(RunProgram(server, {"health", "--json"}).out);
  EXPECT_EQ(json, (nlohmann::json{{"service", ""}, {"status", "SERVING"}}));
}

}  // namespace
}  // namespace tidal::client
