// What grpc.health.v1 says: "", "readiness" and each of our services tell whether requests are
// taken; "liveness" whether the process is worth keeping. Thread-safe.
#pragma once

#include <grpcpp/health_check_service_interface.h>

#include <optional>

#include "absl/time/time.h"
#include "engine/engine_observer.h"

namespace tidal::server {

class Health {
 public:
  // `service`, gRPC's default one, must outlive this object. Begins as alive and not ready.
  explicit Health(grpc::HealthCheckServiceInterface* service);

  void SetReady(bool ready);
  void SetAlive(bool alive);

 private:
  grpc::HealthCheckServiceInterface* service_;
};

// Tells a busy engine from a dead one: with requests to compute it makes progress, and each look
// compares with the one before. Not thread-safe.
class ProgressWatch {
 public:
  explicit ProgressWatch(absl::Duration timeout) : timeout_(timeout) {}

  // False where there has been something to do, and no progress, for the whole timeout up to `now`.
  bool IsAlive(absl::Time now, const EngineLoad& load, absl::Time last_progress);

 private:
  absl::Duration timeout_;
  std::optional<absl::Time> stuck_since_;
  absl::Time last_progress_ = absl::InfinitePast();
};

}  // namespace tidal::server
