// The gRPC server: its port, limits, keepalive, health and reflection. Thread-safe.
#pragma once

#include <grpcpp/health_check_service_interface.h>
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

struct GrpcServerOptions {
  std::string listen_address;  // host:port, with 0 for a free port
  int64_t max_receive_message_bytes = 16 << 20;
};

class GrpcServer {
 public:
  // Listens and serves at once. The services must outlive the server. UNAVAILABLE where the address
  // cannot be listened on.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(
      const GrpcServerOptions& options, const std::vector<grpc::Service*>& services,
      std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> interceptor);

  ~GrpcServer() { Shutdown(absl::ZeroDuration()); }

  int port() const { return port_; }
  grpc::HealthCheckServiceInterface* health_service() { return server_->GetHealthCheckService(); }

  // Takes no further calls, cancels those left after `grace`, and waits for their end.
  void Shutdown(absl::Duration grace);

 private:
  GrpcServer(std::unique_ptr<grpc::Server> server, int port)
      : server_(std::move(server)), port_(port) {}

  std::unique_ptr<grpc::Server> server_;
  int port_;
};

}  // namespace tidal::server
