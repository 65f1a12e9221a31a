// Who calls: the holder of a bearer token, the subject of a client certificate, or an address.
// Thread-safe.
#pragma once

#include <grpcpp/server_context.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/token_file.h"

namespace tidal::server {

class AccessControl {
 public:
  // Without tokens everybody may call whom TLS lets in.
  explicit AccessControl(std::unique_ptr<TokenFile> tokens = nullptr)
      : tokens_(std::move(tokens)) {}

  // The caller's name for logs and limits: the token's name where tokens are asked for, else the
  // first name of the client's certificate, else the peer's host. UNAUTHENTICATED, without a word
  // about why, unless the metadata has exactly one `authorization` with a known bearer token.
  absl::StatusOr<std::string> Identify(const grpc::ServerContextBase& context) const;

 private:
  const std::unique_ptr<TokenFile> tokens_;
};

// The host of gRPC's name for a peer: "10.0.0.7" of "ipv4:10.0.0.7:4711", "[::1]" of
// "ipv6:%5B::1%5D:4711", "unix" of a Unix socket's. What has another form stays as it is.
std::string HostOfPeer(absl::string_view peer);

}  // namespace tidal::server
