// tidal.inference.v1.AdminService. Thread-safe, as gRPC calls it on threads of its own.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/access_control.h"
#include "server/lifecycle.h"
#include "server/prometheus_metrics.h"
#include "tidal/inference/v1/admin.grpc.pb.h"

namespace tidal::server {

class AdminServiceImpl : public inference::v1::AdminService::CallbackService {
 public:
  // All must outlive the service and its calls. `access` says who may call: an operator's tokens
  // are not those of clients.
  AdminServiceImpl(Lifecycle* lifecycle, PrometheusMetrics* metrics, const AccessControl* access)
      : lifecycle_(lifecycle), metrics_(metrics), access_(access) {}

  grpc::ServerUnaryReactor* AbortRequest(grpc::CallbackServerContext* context,
                                         const inference::v1::AbortRequestRequest* request,
                                         inference::v1::AbortRequestResponse* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const inference::v1::DrainRequest* request,
                                  inference::v1::DrainResponse* response) override;
  grpc::ServerUnaryReactor* FlushPrefixCache(
      grpc::CallbackServerContext* context, const inference::v1::FlushPrefixCacheRequest* request,
      inference::v1::FlushPrefixCacheResponse* response) override;

 private:
  // Who calls. UNAUTHENTICATED, or UNIMPLEMENTED for fields that are not known.
  absl::StatusOr<std::string> Check(const grpc::CallbackServerContext& context,
                                    const google::protobuf::Message& request) const;
  absl::Status Abort(const std::string& operator_name, const std::string& request_id) const;
  absl::Status BeginDrain(const std::string& operator_name,
                          inference::v1::DrainResponse* response) const;

  absl::Status Flush(const std::string& operator_name,
                     inference::v1::FlushPrefixCacheResponse* response);

  Lifecycle* const lifecycle_;
  PrometheusMetrics* const metrics_;
  const AccessControl* const access_;
  // Held while a flush waits for the engine: no more than one of gRPC's threads may.
  std::mutex flush_mutex_;
};

}  // namespace tidal::server
