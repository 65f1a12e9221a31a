// What grpc.health.v1 says: "", "readiness" and each of our services tell whether requests are
// taken; "liveness" whether the process is worth keeping. Thread-safe.
#pragma once

#include <grpcpp/health_check_service_interface.h>

#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "engine/engine_observer.h"

namespace tidal::server {

class Health {
 public:
  // `services`, gRPC's default ones of one or several ports, must outlive this object. Begins as
  // alive and not ready.
  explicit Health(std::vector<grpc::HealthCheckServiceInterface*> services);

  void SetReady(bool ready);
  void SetAlive(bool alive);

 private:
  const std::vector<grpc::HealthCheckServiceInterface*> services_;
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
