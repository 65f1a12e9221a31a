#include "server/server_config.h"

#include <absl/flags/reflection.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <fstream>
#include <string>
#include <vector>

#include "server/byte_size.h"

namespace tidal::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class ServerConfigTest : public testing::Test {
 protected:
  ~ServerConfigTest() override {
    for (const std::string& name : variables_) unsetenv(name.c_str());
  }

  void SetVariable(const std::string& name, const std::string& value) {
    setenv(name.c_str(), value.c_str(), 1);
    variables_.push_back(name);
  }

  static absl::StatusOr<ServerConfig> Parse(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "tidal-server");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    return ParseServerConfig(static_cast<int>(argv.size()), argv.data());
  }

  static std::string ErrorOf(const std::string& argument) {
    const absl::FlagSaver saver;
    return std::string(Parse({"--model_path=/m", argument}).status().message());
  }

 private:
  const absl::FlagSaver saver_;
  std::vector<std::string> variables_;
};

TEST_F(ServerConfigTest, HasTheDocumentedDefaults) {
  const absl::StatusOr<ServerConfig> config = Parse({"--model_path=/m"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.model_path, "/m");
  EXPECT_EQ(config->transport.listen_address, "0.0.0.0:50051");
  EXPECT_EQ(config->metrics_address, "0.0.0.0:9090");
  EXPECT_EQ(config->model.device, Device::kAuto);
  EXPECT_EQ(config->model.load_format, LoadFormat::kAuto);
  EXPECT_EQ(config->attention.mode, AttentionMode::kTidal);
  EXPECT_TRUE(config->attention.scope_is_auto);
  EXPECT_EQ(config->shutdown_timeout, absl::Seconds(30));
  EXPECT_EQ(config->lame_duck_interval, absl::ZeroDuration());
  EXPECT_FALSE(config->log_prompts);
}

TEST_F(ServerConfigTest, ReadsEveryFlag) {
  const absl::StatusOr<ServerConfig> config = Parse({"--model_path=/m",
                                                     "--model_name=n",
                                                     "--listen_address=[::]:1",
                                                     "--metrics_address=",
                                                     "--port_file=/p",
                                                     "--device=cpu",
                                                     "--load_format=dummy",
                                                     "--max_model_len=1000",
                                                     "--max_batch_tokens=128",
                                                     "--max_running_requests=3",
                                                     "--max_queued_requests=4",
                                                     "--max_queued_tokens=5",
                                                     "--kv_cache_memory=4GiB",
                                                     "--gpu_memory_fraction=0.25",
                                                     "--cpu_threads=2",
                                                     "--attention=full",
                                                     "--token_budget=512",
                                                     "--full_layers=0,1",
                                                     "--selection_layers=2,13",
                                                     "--selection_scope=kv_head",
                                                     "--sink_tokens=4",
                                                     "--recent_tokens=8",
                                                     "--correction_interval=0",
                                                     "--shutdown_timeout=90s",
                                                     "--lame_duck_interval=1500ms",
                                                     "--liveness_timeout=10s",
                                                     "--max_receive_message_size=1MiB",
                                                     "--max_pending_response_size=64KiB",
                                                     "--stalled_stream_timeout=7s",
                                                     "--gateway_metrics",
                                                     "--log_format=json",
                                                     "--log_level=debug",
                                                     "--log_prompts"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model_name, "n");
  EXPECT_EQ(config->transport.listen_address, "[::]:1");
  EXPECT_EQ(config->metrics_address, "");
  EXPECT_EQ(config->port_file, "/p");
  EXPECT_EQ(config->model.device, Device::kCpu);
  EXPECT_EQ(config->model.load_format, LoadFormat::kDummy);
  EXPECT_EQ(config->model.max_model_len, 1000);
  EXPECT_EQ(config->model.max_batch_tokens, 128);
  EXPECT_EQ(config->model.max_running_requests, 3);
  EXPECT_EQ(config->max_queued_requests, 4);
  EXPECT_EQ(config->max_queued_tokens, 5);
  EXPECT_EQ(config->model.kv_cache_memory_bytes, int64_t{4} << 30);
  EXPECT_EQ(config->model.memory_fraction, 0.25);
  EXPECT_EQ(config->model.cpu_threads, 2);
  EXPECT_EQ(config->attention.mode, AttentionMode::kFull);
  EXPECT_EQ(config->attention.selection.token_budget, 512);
  EXPECT_THAT(config->model.layer_plan.full_layers.value(), ElementsAre(0, 1));
  EXPECT_THAT(config->model.layer_plan.selection_layers.value(), ElementsAre(2, 13));
  EXPECT_FALSE(config->attention.scope_is_auto);
  EXPECT_EQ(config->attention.selection.scope, SelectionScope::kKvHead);
  EXPECT_EQ(config->attention.selection.num_sink_tokens, 4);
  EXPECT_EQ(config->attention.selection.num_recent_tokens, 8);
  EXPECT_EQ(config->shutdown_timeout, absl::Seconds(90));
  EXPECT_EQ(config->lame_duck_interval, absl::Milliseconds(1500));
  EXPECT_EQ(config->liveness_timeout, absl::Seconds(10));
  EXPECT_EQ(config->max_receive_message_bytes, 1 << 20);
  EXPECT_EQ(config->max_pending_response_bytes, 64 << 10);
  EXPECT_EQ(config->stalled_stream_timeout, absl::Seconds(7));
  EXPECT_TRUE(config->gateway_metrics);
  EXPECT_EQ(config->log.format, LogFormat::kJson);
  EXPECT_EQ(config->log.level, LogLevel::debug);
  EXPECT_TRUE(config->log_prompts);
}

TEST_F(ServerConfigTest, NamesFlagValueAndLimit) {
  EXPECT_EQ(std::string(Parse({}).status().message()),
            "--model_path: is missing: the checkpoint's directory");
  EXPECT_EQ(ErrorOf("--device=tpu"), "--device: 'tpu' is none of auto, cpu, cuda");
  EXPECT_EQ(ErrorOf("--token_budget=4097"), "--token_budget: 4097 is not in [1, 4096]");
  EXPECT_EQ(ErrorOf("--max_running_requests=0"), "--max_running_requests: 0 is not in [1, 65536]");
  EXPECT_EQ(ErrorOf("--gpu_memory_fraction=1.5"), "--gpu_memory_fraction: 1.5 is not in [0, 1]");
  EXPECT_EQ(ErrorOf("--gpu_memory_fraction=nan"), "--gpu_memory_fraction: nan is not in [0, 1]");
  EXPECT_EQ(ErrorOf("--listen_address=50051"),
            "--listen_address: '50051' is not host:port with a port in [0, 65535]");
  EXPECT_EQ(ErrorOf("--listen_address=a:65536"),
            "--listen_address: 'a:65536' is not host:port with a port in [0, 65535]");
  EXPECT_EQ(ErrorOf("--selection_layers=2,x"),
            "--selection_layers: 'x' is not a layer's number, 0 or more");
  EXPECT_EQ(ErrorOf("--shutdown_timeout=-1s"), "--shutdown_timeout: -1s is not in [0, 24h]");
  EXPECT_EQ(ErrorOf("--sink_tokens=256"),
            "--token_budget: 256 is less than the 257 positions that --sink_tokens and "
            "--recent_tokens (at least the current one) keep");
  EXPECT_EQ(ErrorOf("--correction_interval=-1"),
            "--correction_interval: -1 is not in [0, 2147483647]");
  EXPECT_EQ(ErrorOf("serve"), "'serve' is not a flag; flags are --name=value");
}

TEST_F(ServerConfigTest, TakesEveryMethodOfAttention) {
  const absl::StatusOr<ServerConfig> config =
      Parse({"--model_path=/m", "--attention=quest", "--selection_scope=layer",
             "--correction_interval=16"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->attention.mode, AttentionMode::kQuest);
  EXPECT_EQ(config->attention.selection.scope, SelectionScope::kLayer);
  EXPECT_EQ(config->attention.correction_interval, 16);
}

TEST_F(ServerConfigTest, ReadsTheEnvironmentAndLetsTheCommandLineWin) {
  SetVariable("TIDAL_MODEL_PATH", "/from/environment");
  SetVariable("TIDAL_TOKEN_BUDGET", "100");
  SetVariable("TIDAL_MAX_QUEUED_REQUESTS", "9");
  const absl::StatusOr<ServerConfig> config = Parse({"--token_budget=200"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.model_path, "/from/environment");
  EXPECT_EQ(config->attention.selection.token_budget, 200);
  EXPECT_EQ(config->max_queued_requests, 9);
}

TEST_F(ServerConfigTest, NamesAVariableThatIsWrong) {
  SetVariable("TIDAL_TOKEN_BUDGET", "many");
  const absl::Status status = Parse({"--model_path=/m"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("TIDAL_TOKEN_BUDGET: 'many'"));
}

TEST_F(ServerConfigTest, ReadsAFlagFile) {
  const std::string path = testing::TempDir() + "/tidal_server_config_test.flags";
  std::ofstream(path) << "--model_path=/from/file\n--token_budget=99\n";
  SetVariable("TIDAL_FLAGFILE", path);
  const absl::StatusOr<ServerConfig> config = Parse({"--token_budget=98"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.model_path, "/from/file");
  EXPECT_EQ(config->attention.selection.token_budget, 98);
}

TEST(ByteSizeTest, ReadsNumbersWithUnits) {
  const auto parse = [](const std::string& text) {
    ByteSize size;
    std::string error;
    EXPECT_TRUE(AbslParseFlag(text, &size, &error)) << text << ": " << error;
    return size.bytes;
  };
  EXPECT_EQ(parse("0"), 0);
  EXPECT_EQ(parse("123"), 123);
  EXPECT_EQ(parse("4GiB"), int64_t{4} << 30);
  EXPECT_EQ(parse("1.5 MiB"), 3 << 19);
  EXPECT_EQ(parse("16kib"), 16 << 10);
  EXPECT_EQ(parse("2GB"), 2'000'000'000);
  EXPECT_EQ(parse("1TiB"), int64_t{1} << 40);
}

TEST(ByteSizeTest, RefusesWhatIsNoSize) {
  for (const std::string text :
       {"", "GiB", "4 apples", "-1", "1.2.3", "nan", "4Gi", "1e30", "99999999999GiB"}) {
    ByteSize size;
    std::string error;
    EXPECT_FALSE(AbslParseFlag(text, &size, &error)) << text;
    EXPECT_THAT(error, HasSubstr("'" + text + "'"));
  }
}

TEST(ByteSizeTest, WritesWhatItReads) {
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{1023}, int64_t{4} << 30,
                              int64_t{3} << 19, int64_t{1} << 50}) {
    ByteSize size;
    std::string error;
    ASSERT_TRUE(AbslParseFlag(AbslUnparseFlag({bytes}), &size, &error)) << error;
    EXPECT_EQ(size.bytes, bytes);
  }
  EXPECT_EQ(AbslUnparseFlag({int64_t{4} << 30}), "4GiB");
}

}  // namespace
}  // namespace tidal::server
