// Sees the status of every call of every service as it is sent, health and reflection among them:
// counts it, and puts right what gRPC says of a request that it cannot parse (UNIMPLEMENTED and no
// word; it is INVALID_ARGUMENT). Not seen here are requests larger than the receive limit, which
// gRPC's core refuses by itself. Thread-safe.
#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "server/prometheus_metrics.h"

namespace tidal::server {

// Full names of methods: of the health service; of what clients' port serves, an operator's port
// serves, each with health and reflection; and of all these.
std::vector<std::string> HealthMethods();
std::vector<std::string> ClientMethods();
std::vector<std::string> AdminMethods();
std::vector<std::string> AllMethods();

class RpcInterceptorFactory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  // `served_methods` are those of the port it is for. `metrics` must outlive the server.
  RpcInterceptorFactory(const PrometheusMetrics* metrics,
                        const std::vector<std::string>& served_methods);

  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* rpc) override;

 private:
  const PrometheusMetrics* metrics_;
  const absl::flat_hash_set<std::string> served_methods_;
};

}  // namespace tidal::server
