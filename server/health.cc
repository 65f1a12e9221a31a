#include "server/health.h"

#include <utility>

#include "tidal/inference/v1/inference.grpc.pb.h"
#include "tidal/inference/v1/model.grpc.pb.h"

namespace tidal::server {

Health::Health(std::vector<grpc::HealthCheckServiceInterface*> services)
    : services_(std::move(services)) {
  SetReady(false);
  SetAlive(true);
}

void Health::SetReady(bool ready) {
  for (const char* name : {"", "readiness", inference::v1::InferenceService::service_full_name(),
                           inference::v1::ModelService::service_full_name()}) {
    for (grpc::HealthCheckServiceInterface* service : services_) {
      service->SetServingStatus(name, ready);
    }
  }
}

void Health::SetAlive(bool alive) {
  for (grpc::HealthCheckServiceInterface* service : services_) {
    service->SetServingStatus("liveness", alive);
  }
}

bool ProgressWatch::IsAlive(absl::Time now, const EngineLoad& load, absl::Time last_progress) {
  const bool has_work = load.num_running_requests > 0 || load.num_waiting_requests > 0;
  if (!has_work || last_progress != last_progress_) {
    stuck_since_.reset();
  } else if (!stuck_since_.has_value()) {
    stuck_since_ = now;
  }
  last_progress_ = last_progress;
  return !stuck_since_.has_value() || now - *stuck_since_ < timeout_;
}

}  // namespace tidal::server
