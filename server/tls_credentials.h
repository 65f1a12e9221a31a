// TLS for a listening port, from PEM files that may be replaced while the server runs: each new
// connection gets what the files hold, read again at most once in each interval. Files that have
// become unreadable or do not belong together leave the former ones in force, and the log says so.
#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/clock.h"

namespace tidal::server {

struct TlsFiles {
  std::string certificate_file;  // the chain, the server's own certificate first
  std::string key_file;          // its private key, without a passphrase
  // Certificates that clients' certificates must descend from; empty = clients need none.
  std::string client_ca_file;
};

// The files' contents.
struct TlsMaterial {
  std::string certificate_chain;
  std::string private_key;
  std::string client_ca;  // empty = clients need no certificate

  bool operator==(const TlsMaterial& other) const = default;
};

// INVALID_ARGUMENT names flag and file: not readable, not PEM, or a key that is not the
// certificate's.
absl::StatusOr<TlsMaterial> ReadTlsMaterial(const TlsFiles& files);

// For one port of one server. As ReadTlsMaterial where the files are wrong from the start. `clock`
// must outlive the server.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> CreateTlsCredentials(
    TlsFiles files, absl::Duration reload_interval, const Clock* clock);

}  // namespace tidal::server
