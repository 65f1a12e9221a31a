// What stands before every call of our services: who calls, whether the server takes calls, and
// what this client may still ask for. Counts whom it refuses. Thread-safe.
#pragma once

#include <grpcpp/server_context.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/access_control.h"
#include "server/client_limits.h"
#include "server/generate_call.h"
#include "server/lifecycle.h"
#include "server/prometheus_metrics.h"

namespace tidal::server {

class CallAdmission {
 public:
  // All must outlive this object and the calls.
  CallAdmission(Lifecycle* lifecycle, PrometheusMetrics* metrics, const AccessControl* access,
                ClientLimits* limits)
      : lifecycle_(lifecycle), metrics_(metrics), access_(access), limits_(limits) {}

  // A call that is answered at once: its client's limits do not count. Sets the client of *call
  // where it is known. UNAUTHENTICATED, or UNAVAILABLE unless serving.
  absl::StatusOr<ActiveCall> Admit(const grpc::ServerContextBase& context, CallInfo* call) const;

  // A generation: as Admit, and RESOURCE_EXHAUSTED where the client's limits are reached. Whoever
  // is admitted holds a lease in *call.
  absl::StatusOr<ActiveCall> AdmitGeneration(const grpc::ServerContextBase& context,
                                             CallInfo* call) const;

 private:
  absl::StatusOr<std::string> Identify(const grpc::ServerContextBase& context) const;
  absl::StatusOr<ActiveCall> AdmitToServer() const;

  Lifecycle* const lifecycle_;
  PrometheusMetrics* const metrics_;
  const AccessControl* const access_;
  ClientLimits* const limits_;
};

}  // namespace tidal::server
