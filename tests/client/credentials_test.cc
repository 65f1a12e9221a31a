#include "client/command/credentials.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/client/program_run.h"

namespace tidal::client {
namespace {

using ::testing::HasSubstr;

std::string WriteFile(const std::string& name, const std::string& text) {
  std::string path = absl::StrCat(testing::TempDir(), getpid(), "_", name);
  std::ofstream(path) << text;
  return path;
}

TEST(CredentialsTest, NoFlagsMeanNoEncryptionAndNoToken) {
  const auto tls = ReadTlsOptions({});
  ASSERT_TRUE(tls.ok());
  EXPECT_FALSE(tls->has_value());
  EXPECT_EQ(*ReadBearerToken({}), "");
}

TEST(CredentialsTest, FilesImplyTls) {
  CredentialFlags flags;
  flags.ca_file = WriteFile("ca.pem", "roots");
  flags.cert_file = WriteFile("cert.pem", "chain");
  flags.key_file = WriteFile("key.pem", "key");
  const auto tls = ReadTlsOptions(flags);
  ASSERT_TRUE(tls.ok()) << tls.status();
  ASSERT_TRUE(tls->has_value());
  EXPECT_EQ((*tls)->ca_certificates, "roots");
  EXPECT_EQ((*tls)->certificate_chain, "chain");
  EXPECT_EQ((*tls)->private_key, "key");
}

TEST(CredentialsTest, RefusesHalfAnIdentityAndMissingFiles) {
  CredentialFlags half;
  half.cert_file = WriteFile("cert.pem", "chain");
  EXPECT_THAT(ReadTlsOptions(half).status().message(), HasSubstr("need each other"));
  CredentialFlags missing;
  missing.ca_file = "/nonexistent/ca.pem";
  EXPECT_THAT(ReadTlsOptions(missing).status().message(), HasSubstr("--ca_file"));
}

TEST(CredentialsTest, TokenIsOneWord) {
  CredentialFlags flags;
  flags.token_file = WriteFile("token", "s3cret\n");
  EXPECT_EQ(*ReadBearerToken(flags), "s3cret");
  for (const char* text : {" \n", "two words", "s3cr\x01t"}) {
    flags.token_file = WriteFile("token", text);
    const auto token = ReadBearerToken(flags);
    EXPECT_THAT(token.status().message(), HasSubstr("--token_file"));
    EXPECT_EQ(token.status().message().find("s3cr"), std::string::npos);
  }
}

TEST(CredentialsTest, TokenGoesWithUnaryCallsAndStreams) {
  FakeServer server;
  server.inference().events = {StartedEvent(), FinishedEvent()};
  const std::string flag = "--token_file=" + WriteFile("token", "s3cret\n");
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {"generate", flag, "a"}, {"generate", "--no_stream", flag, "a"}}) {
    server.inference().authorization.clear();
    EXPECT_EQ(RunProgram(server, arguments).exit_code, ExitCode::kOk);
    EXPECT_EQ(server.inference().authorization, "Bearer s3cret");
  }
}

TEST(CredentialsTest, BadFilesAreUsageErrors) {
  FakeServer server;
  EXPECT_EQ(RunProgram(server, {"info", "--token_file=/nonexistent/token"}).exit_code,
            ExitCode::kUsage);
  EXPECT_EQ(RunProgram(server, {"info", "--key_file=/nonexistent/key"}).exit_code,
            ExitCode::kUsage);
}

}  // namespace
}  // namespace tidal::client
