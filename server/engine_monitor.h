// Passes what the engine reports on to the metrics, and its faults and preemptions also to the log
// and to whoever decides about the server's end. As thread-safe as they are.
#pragma once

#include "engine/engine_observer.h"
#include "server/lifecycle.h"
#include "server/logging.h"

namespace tidal::server {

class EngineMonitor : public EngineObserver {
 public:
  // Both must outlive the engine.
  EngineMonitor(EngineObserver* metrics, Lifecycle* lifecycle)
      : metrics_(metrics), lifecycle_(lifecycle) {}

  void OnStep(const StepReport& report) override { metrics_->OnStep(report); }
  void OnFirstToken(absl::Duration time_to_first_token) override {
    metrics_->OnFirstToken(time_to_first_token);
  }
  void OnInterTokenLatency(absl::Duration latency) override {
    metrics_->OnInterTokenLatency(latency);
  }
  void OnPreemption(const std::string& request_id) override {
    Log(LogLevel::debug, "request preempted", {{"request_id", request_id}});
    metrics_->OnPreemption(request_id);
  }
  void OnRequestEnded(const RequestReport& report) override { metrics_->OnRequestEnded(report); }
  void OnRejected(RejectionReason reason) override { metrics_->OnRejected(reason); }
  void OnLoadChanged(const EngineLoad& load) override { metrics_->OnLoadChanged(load); }
  void OnFault(const absl::Status& status) override {
    Log(LogLevel::err, "the engine has failed", {{"error", std::string(status.message())}});
    metrics_->OnFault(status);
    lifecycle_->OnEngineFault(status);
  }

 private:
  EngineObserver* metrics_;
  Lifecycle* lifecycle_;
};

}  // namespace tidal::server
