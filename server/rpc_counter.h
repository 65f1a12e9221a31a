// Counts every call of every service with the status that the server sent, those refused before
// they reach a handler (too large, malformed) among them. A gRPC interceptor. Thread-safe.
#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <string>
#include <vector>

#include "server/prometheus_metrics.h"

namespace tidal::server {

// Full names of all methods that the server offers: ours, health and reflection.
std::vector<std::string> ServedMethods();

class RpcCounterFactory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  // `metrics` must outlive the server.
  explicit RpcCounterFactory(const PrometheusMetrics* metrics) : metrics_(metrics) {}

  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* rpc) override;

 private:
  const PrometheusMetrics* metrics_;
};

}  // namespace tidal::server
