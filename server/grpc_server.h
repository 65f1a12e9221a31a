// A gRPC server: its port, encryption, limits, keepalive, health and reflection. Thread-safe.
#pragma once

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/support/server_interceptor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace tidal::server {

// How connections are watched over. Durations are rounded down to milliseconds.
struct ConnectionOptions {
  // Silence of a client after which it is asked for a sign of life, and how long that may take:
  // so those that vanished without a word are noticed, and their requests end.
  absl::Duration keepalive_time = absl::Seconds(60);
  absl::Duration keepalive_timeout = absl::Seconds(20);
  // How often clients may ping an idle connection or a long silent stream.
  absl::Duration min_ping_interval = absl::Seconds(10);
  // For a connection's TLS handshake and the client's first HTTP/2 settings.
  absl::Duration handshake_timeout = absl::Seconds(10);
  absl::Duration max_connection_age = absl::ZeroDuration();  // zero = for ever
};

struct GrpcServerOptions {
  // Where the address comes from, for messages.
  std::string address_flag = "listen_address";
  // host:port, with 0 for a free port; or unix:PATH, a socket that its owner alone may use.
  std::string listen_address;
  // Null: connections are not encrypted.
  std::shared_ptr<grpc::ServerCredentials> credentials = nullptr;
  int64_t max_receive_message_bytes = 16 << 20;
  ConnectionOptions connection = {};
  // Also for every server started later in this process. Reflection asks nobody for a token.
  bool has_reflection = true;
};

class GrpcServer {
 public:
  // Listens and serves at once. The services must outlive the server. UNAVAILABLE where the address
  // cannot be listened on.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(
      const GrpcServerOptions& options, const std::vector<grpc::Service*>& services,
      std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> interceptor);

  ~GrpcServer() { Shutdown(absl::ZeroDuration()); }

  // 0 of a Unix socket.
  int port() const { return port_; }
  grpc::HealthCheckServiceInterface* health_service() { return server_->GetHealthCheckService(); }

  // Takes no further calls, cancels those left after `grace`, and waits for their end.
  void Shutdown(absl::Duration grace);

 private:
  GrpcServer(std::shared_ptr<grpc::ServerCredentials> credentials,
             std::unique_ptr<grpc::Server> server, int port)
      : credentials_(std::move(credentials)), server_(std::move(server)), port_(port) {}

  const std::shared_ptr<grpc::ServerCredentials> credentials_;  // in use as long as the server
  std::unique_ptr<grpc::Server> server_;
  int port_;
};

}  // namespace tidal::server
