#include "server/transport_config.h"

#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"

ABSL_FLAG(std::string, listen_address, "0.0.0.0:50051",
          "host:port of gRPC; port 0 takes a free one");
ABSL_FLAG(std::string, health_address, "",
          "host:port where only the health service answers, without encryption: for probes that do "
          "not know TLS");
ABSL_FLAG(std::string, tls_certificate_file, "",
          "Certificate chain in PEM, the server's own first; encrypts gRPC");
ABSL_FLAG(std::string, tls_key_file, "", "Private key in PEM of --tls_certificate_file");
ABSL_FLAG(std::string, tls_client_ca_file, "",
          "Certificates in PEM that issue those which clients then have to show");
ABSL_FLAG(std::string, auth_token_file, "",
          "File of name:token lines; calls then need one as `authorization: Bearer TOKEN`");
ABSL_FLAG(bool, allow_plaintext_tokens, false,
          "Take bearer tokens without TLS on an address that is not loopback, because something "
          "else encrypts");
ABSL_FLAG(absl::Duration, credential_reload_interval, absl::Seconds(10),
          "How old what is known of certificate and token files may be");
ABSL_FLAG(
    std::string, admin_address, "",
    "[host]:port, on the loopback by default, or unix:PATH, where AdminService answers; empty "
    "serves none");
ABSL_FLAG(std::string, admin_token_file, "",
          "As --auth_token_file, for --admin_address; needed where that is not local");
ABSL_FLAG(int32_t, max_client_requests, 0, "Most requests of a client in flight; 0 = no limit");
ABSL_FLAG(int64_t, max_client_tokens_per_minute, 0,
          "Prompt and generated tokens of a client a minute; 0 = no limit");
ABSL_FLAG(absl::Duration, keepalive_time, absl::Seconds(60),
          "Silence after which the server asks whether a client is still there");
ABSL_FLAG(absl::Duration, keepalive_timeout, absl::Seconds(20),
          "Wait for its answer before the connection is closed");
ABSL_FLAG(absl::Duration, min_ping_interval, absl::Seconds(10),
          "Clients that ping more often are disconnected");
ABSL_FLAG(absl::Duration, handshake_timeout, absl::Seconds(10),
          "Time for a new connection's TLS handshake and first HTTP/2 settings");
ABSL_FLAG(absl::Duration, max_connection_age, absl::ZeroDuration(),
          "Age at which clients are asked to connect anew, so that load spreads; calls in flight "
          "go on; 0 = never");

namespace tidal::server {
namespace {

constexpr int32_t kMaxClientRequests = 1 << 20;
constexpr int64_t kMaxClientTokensPerMinute = int64_t{1} << 40;

template <typename T>
absl::Status CheckLimit(absl::string_view flag, T value, T high) {
  if (value >= 0 && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, ": ", value, " is not in [0, ", high, "]"));
}

absl::Status ReadTlsFlags(TransportConfig* config) {
  TlsFiles files = {.certificate_file = absl::GetFlag(FLAGS_tls_certificate_file),
                    .key_file = absl::GetFlag(FLAGS_tls_key_file),
                    .client_ca_file = absl::GetFlag(FLAGS_tls_client_ca_file)};
  if (files.certificate_file.empty() != files.key_file.empty()) {
    return absl::InvalidArgumentError("--tls_certificate_file and --tls_key_file need each other");
  }
  if (!files.client_ca_file.empty() && files.key_file.empty()) {
    return absl::InvalidArgumentError(
        "--tls_client_ca_file: needs --tls_certificate_file and --tls_key_file");
  }
  if (!files.key_file.empty()) config->tls = std::move(files);
  config->credential_reload_interval = absl::GetFlag(FLAGS_credential_reload_interval);
  return CheckDuration("credential_reload_interval", config->credential_reload_interval,
                       absl::Seconds(1));
}

absl::Status CheckTokensAreEncrypted(absl::string_view flag, absl::string_view address,
                                     const TransportConfig& config) {
  if (config.tls.has_value() || IsLocalAddress(address) ||
      absl::GetFlag(FLAGS_allow_plaintext_tokens)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, ": tokens would cross the network in plain text to '", address,
                   "'; give --tls_certificate_file and --tls_key_file, or a loopback address, or "
                   "--allow_plaintext_tokens where something else encrypts"));
}

absl::Status ReadAccessFlags(TransportConfig* config) {
  config->auth_token_file = absl::GetFlag(FLAGS_auth_token_file);
  if (!config->auth_token_file.empty()) {
    TIDAL_RETURN_IF_ERROR(
        CheckTokensAreEncrypted("auth_token_file", config->listen_address, *config));
  }
  ClientLimitOptions& limits = config->client_limits;
  limits.max_requests = absl::GetFlag(FLAGS_max_client_requests);
  TIDAL_RETURN_IF_ERROR(CheckLimit("max_client_requests", limits.max_requests, kMaxClientRequests));
  limits.max_tokens_per_minute = absl::GetFlag(FLAGS_max_client_tokens_per_minute);
  return CheckLimit("max_client_tokens_per_minute", limits.max_tokens_per_minute,
                    kMaxClientTokensPerMinute);
}

absl::Status ReadAdminFlags(TransportConfig* config) {
  config->admin_token_file = absl::GetFlag(FLAGS_admin_token_file);
  const std::string address = absl::GetFlag(FLAGS_admin_address);
  if (address.empty()) {
    if (config->admin_token_file.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError("--admin_token_file: needs --admin_address");
  }
  TIDAL_ASSIGN_OR_RETURN(config->admin_address, ParseAdminAddress(address));
  if (IsLocalAddress(config->admin_address)) return absl::OkStatus();
  if (config->admin_token_file.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--admin_address: '", address,
                     "' can be reached from other machines; give --admin_token_file, or a loopback "
                     "address, or unix:PATH"));
  }
  return CheckTokensAreEncrypted("admin_token_file", config->admin_address, *config);
}

absl::Status ReadConnectionFlags(ConnectionOptions* connection) {
  connection->keepalive_time = absl::GetFlag(FLAGS_keepalive_time);
  TIDAL_RETURN_IF_ERROR(
      CheckDuration("keepalive_time", connection->keepalive_time, absl::Seconds(1)));
  connection->keepalive_timeout = absl::GetFlag(FLAGS_keepalive_timeout);
  TIDAL_RETURN_IF_ERROR(
      CheckDuration("keepalive_timeout", connection->keepalive_timeout, absl::Seconds(1)));
  connection->min_ping_interval = absl::GetFlag(FLAGS_min_ping_interval);
  TIDAL_RETURN_IF_ERROR(
      CheckDuration("min_ping_interval", connection->min_ping_interval, absl::Milliseconds(100)));
  connection->handshake_timeout = absl::GetFlag(FLAGS_handshake_timeout);
  TIDAL_RETURN_IF_ERROR(
      CheckDuration("handshake_timeout", connection->handshake_timeout, absl::Milliseconds(100)));
  connection->max_connection_age = absl::GetFlag(FLAGS_max_connection_age);
  return CheckDuration("max_connection_age", connection->max_connection_age, absl::ZeroDuration());
}

}  // namespace

absl::StatusOr<TransportConfig> TransportConfigFromFlags() {
  TransportConfig config;
  config.listen_address = absl::GetFlag(FLAGS_listen_address);
  TIDAL_RETURN_IF_ERROR(CheckAddress("listen_address", config.listen_address));
  config.health_address = absl::GetFlag(FLAGS_health_address);
  if (!config.health_address.empty()) {
    TIDAL_RETURN_IF_ERROR(CheckAddress("health_address", config.health_address));
  }
  TIDAL_RETURN_IF_ERROR(ReadTlsFlags(&config));
  TIDAL_RETURN_IF_ERROR(ReadAccessFlags(&config));
  TIDAL_RETURN_IF_ERROR(ReadAdminFlags(&config));
  TIDAL_RETURN_IF_ERROR(ReadConnectionFlags(&config.connection));
  return config;
}

absl::StatusOr<std::string> ParseAdminAddress(absl::string_view address) {
  constexpr absl::string_view kUnixPrefix = "unix:";
  // What a Unix socket's address has room for (sockaddr_un), without the final zero.
  constexpr size_t kMaxUnixPathBytes = 107;
  if (absl::StartsWith(address, kUnixPrefix)) {
    const size_t path_size = address.size() - kUnixPrefix.size();
    if (path_size >= 1 && path_size <= kMaxUnixPathBytes) return std::string(address);
    return absl::InvalidArgumentError(absl::StrCat("--admin_address: the path of '", address,
                                                   "' has not 1 to ", kMaxUnixPathBytes, " bytes"));
  }
  std::string whole(address);
  if (absl::StartsWith(address, ":")) whole.insert(0, "127.0.0.1");
  TIDAL_RETURN_IF_ERROR(CheckAddress("admin_address", whole));
  return whole;
}

absl::Status CheckAddress(absl::string_view flag, absl::string_view address) {
  const size_t colon = address.rfind(':');
  int32_t port = -1;
  if (colon == absl::string_view::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", flag, ": '", address, "' is not host:port with a port in [0, 65535]"));
  }
  return absl::OkStatus();
}

bool IsLocalAddress(absl::string_view address) {
  if (absl::StartsWith(address, "unix:")) return true;
  const absl::string_view host = address.substr(0, address.rfind(':'));
  return host == "localhost" || host == "[::1]" || absl::StartsWith(host, "127.");
}

absl::Status CheckDuration(absl::string_view flag, absl::Duration value, absl::Duration low) {
  if (value >= low && value <= absl::Hours(24)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", absl::FormatDuration(value),
                                                 " is not in [", absl::FormatDuration(low),
                                                 ", 24h]"));
}

}  // namespace tidal::server
