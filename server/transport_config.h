// Flags of the ports: encryption, tokens, limits of each client, keepalive. Part of ServerConfig.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/client_limits.h"
#include "server/grpc_server.h"
#include "server/tls_credentials.h"

namespace tidal::server {

struct TransportConfig {
  std::string listen_address;
  std::string health_address;  // empty = none
  std::optional<TlsFiles> tls;
  std::string auth_token_file;                // empty = everybody may call
  absl::Duration credential_reload_interval;  // of certificates and tokens
  std::string admin_address;                  // empty = none
  std::string admin_token_file;               // empty = whoever can connect may call
  ClientLimitOptions client_limits;
  ConnectionOptions connection;
};

// The flags' present values. INVALID_ARGUMENT names flag, value and limit.
absl::StatusOr<TransportConfig> TransportConfigFromFlags();

// The address of --admin_address: where it has no host, the loopback's. A Unix socket's is
// "unix:PATH".
absl::StatusOr<std::string> ParseAdminAddress(absl::string_view address);

// host:port with a port in [0, 65535].
absl::Status CheckAddress(absl::string_view flag, absl::string_view address);

// Whether only this machine can connect to it: a Unix socket's, or a loopback host's.
bool IsLocalAddress(absl::string_view address);

// In [low, 24h].
absl::Status CheckDuration(absl::string_view flag, absl::Duration value, absl::Duration low);

}  // namespace tidal::server
