#include "server/transport_config.h"

#include <absl/flags/reflection.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "server/server_config.h"

namespace tidal::server {
namespace {

using testing::HasSubstr;

class TransportConfigTest : public testing::Test {
 protected:
  static absl::StatusOr<TransportConfig> Parse(std::vector<std::string> arguments) {
    const absl::FlagSaver saver;
    arguments.insert(arguments.begin(), {"tidal-server", "--model_path=/m"});
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    absl::StatusOr<ServerConfig> config =
        ParseServerConfig(static_cast<int>(argv.size()), argv.data());
    if (!config.ok()) return config.status();
    return config->transport;
  }

  static std::string ErrorOf(const std::vector<std::string>& arguments) {
    return std::string(Parse(arguments).status().message());
  }
};

TEST_F(TransportConfigTest, HasTheDocumentedDefaults) {
  const absl::StatusOr<TransportConfig> config = Parse({});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->listen_address, "0.0.0.0:50051");
  EXPECT_EQ(config->health_address, "");
  EXPECT_FALSE(config->tls.has_value());
  EXPECT_EQ(config->auth_token_file, "");
  EXPECT_EQ(config->credential_reload_interval, absl::Seconds(10));
  EXPECT_EQ(config->admin_address, "");
  EXPECT_EQ(config->admin_token_file, "");
  EXPECT_EQ(config->client_limits.max_requests, 0);
  EXPECT_EQ(config->client_limits.max_tokens_per_minute, 0);
  EXPECT_EQ(config->connection.keepalive_time, absl::Seconds(60));
  EXPECT_EQ(config->connection.keepalive_timeout, absl::Seconds(20));
  EXPECT_EQ(config->connection.min_ping_interval, absl::Seconds(10));
  EXPECT_EQ(config->connection.handshake_timeout, absl::Seconds(10));
  EXPECT_EQ(config->connection.max_connection_age, absl::ZeroDuration());
}

TEST_F(TransportConfigTest, ReadsEveryFlag) {
  const absl::StatusOr<TransportConfig> config =
      Parse({"--listen_address=[::]:1", "--health_address=0.0.0.0:2", "--tls_certificate_file=/c",
             "--tls_key_file=/k", "--tls_client_ca_file=/a", "--auth_token_file=/t",
             "--credential_reload_interval=3s", "--max_client_requests=4",
             "--max_client_tokens_per_minute=5", "--keepalive_time=6s", "--keepalive_timeout=7s",
             "--min_ping_interval=8s", "--handshake_timeout=9s", "--max_connection_age=10m"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->listen_address, "[::]:1");
  EXPECT_EQ(config->health_address, "0.0.0.0:2");
  EXPECT_EQ(config->tls->certificate_file, "/c");
  EXPECT_EQ(config->tls->key_file, "/k");
  EXPECT_EQ(config->tls->client_ca_file, "/a");
  EXPECT_EQ(config->auth_token_file, "/t");
  EXPECT_EQ(config->credential_reload_interval, absl::Seconds(3));
  EXPECT_EQ(config->client_limits.max_requests, 4);
  EXPECT_EQ(config->client_limits.max_tokens_per_minute, 5);
  EXPECT_EQ(config->connection.keepalive_time, absl::Seconds(6));
  EXPECT_EQ(config->connection.keepalive_timeout, absl::Seconds(7));
  EXPECT_EQ(config->connection.min_ping_interval, absl::Seconds(8));
  EXPECT_EQ(config->connection.handshake_timeout, absl::Seconds(9));
  EXPECT_EQ(config->connection.max_connection_age, absl::Minutes(10));
}

TEST_F(TransportConfigTest, NamesFlagValueAndLimit) {
  EXPECT_EQ(ErrorOf({"--health_address=x"}),
            "--health_address: 'x' is not host:port with a port in [0, 65535]");
  EXPECT_EQ(ErrorOf({"--tls_key_file=/k"}),
            "--tls_certificate_file and --tls_key_file need each other");
  EXPECT_EQ(ErrorOf({"--tls_client_ca_file=/a"}),
            "--tls_client_ca_file: needs --tls_certificate_file and --tls_key_file");
  EXPECT_EQ(ErrorOf({"--credential_reload_interval=10ms"}),
            "--credential_reload_interval: 10ms is not in [1s, 24h]");
  EXPECT_EQ(ErrorOf({"--max_client_requests=-1"}),
            "--max_client_requests: -1 is not in [0, 1048576]");
  EXPECT_EQ(ErrorOf({"--max_client_tokens_per_minute=-1"}),
            "--max_client_tokens_per_minute: -1 is not in [0, 1099511627776]");
  EXPECT_EQ(ErrorOf({"--keepalive_time=0"}), "--keepalive_time: 0 is not in [1s, 24h]");
}

TEST_F(TransportConfigTest, TheAdminAddressIsLocalByDefault) {
  const auto address_of = [](const std::string& flag) {
    const absl::StatusOr<TransportConfig> config = Parse({"--admin_address=" + flag});
    return config.ok() ? config->admin_address : std::string(config.status().message());
  };
  EXPECT_EQ(address_of(":50052"), "127.0.0.1:50052");
  EXPECT_EQ(address_of("[::1]:50052"), "[::1]:50052");
  EXPECT_EQ(address_of("unix:/run/tidal"), "unix:/run/tidal");
  EXPECT_THAT(address_of("unix:"), HasSubstr("has not 1 to 107 bytes"));
  EXPECT_THAT(address_of("unix:/" + std::string(107, 'x')), HasSubstr("has not 1 to 107 bytes"));
  EXPECT_THAT(address_of("50052"), HasSubstr("is not host:port"));
  EXPECT_THAT(address_of("0.0.0.0:50052"), HasSubstr("give --admin_token_file"));
}

TEST_F(TransportConfigTest, AnOpenAdminAddressNeedsTokensAndEncryption) {
  const std::string open_address = "--admin_address=0.0.0.0:50052";
  EXPECT_THAT(ErrorOf({open_address, "--admin_token_file=/t"}),
              HasSubstr("--admin_token_file: tokens would cross the network in plain text"));
  EXPECT_EQ(ErrorOf({open_address, "--admin_token_file=/t", "--tls_certificate_file=/c",
                     "--tls_key_file=/k"}),
            "");
  EXPECT_EQ(ErrorOf({open_address, "--admin_token_file=/t", "--allow_plaintext_tokens"}), "");
  EXPECT_EQ(ErrorOf({"--admin_token_file=/t"}), "--admin_token_file: needs --admin_address");
}

TEST_F(TransportConfigTest, TokensDoNotCrossTheNetworkInPlainText) {
  EXPECT_THAT(ErrorOf({"--auth_token_file=/t"}), HasSubstr("plain text to '0.0.0.0:50051'"));
  EXPECT_EQ(ErrorOf({"--auth_token_file=/t", "--listen_address=127.0.0.1:0"}), "");
  EXPECT_EQ(ErrorOf({"--auth_token_file=/t", "--listen_address=[::1]:0"}), "");
  EXPECT_EQ(ErrorOf({"--auth_token_file=/t", "--listen_address=localhost:0"}), "");
  EXPECT_EQ(ErrorOf({"--auth_token_file=/t", "--tls_certificate_file=/c", "--tls_key_file=/k"}),
            "");
  EXPECT_EQ(ErrorOf({"--auth_token_file=/t", "--allow_plaintext_tokens"}), "");
}

}  // namespace
}  // namespace tidal::server
