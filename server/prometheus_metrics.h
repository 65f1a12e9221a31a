// Every metric the server exports, under the names that dashboards and scaling rely on. All label
// values exist from the start. Thread-safe; updating one is an atomic or a short lock, never a
// look-up by label.
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/metric_family.h>
#include <prometheus/registry.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "engine/backend/backend.h"
#include "engine/engine_observer.h"
#include "server/client_limits.h"
#include "server/lifecycle.h"

namespace tidal::server {

class PrometheusMetrics : public EngineObserver, public prometheus::Collectable {
 public:
  struct Options {
    // Full names of the methods whose calls are counted, as in "tidal.inference.v1.X/Y". Calls of
    // any other are counted as "other".
    std::vector<std::string> methods;
    // Also the vllm: names that Kubernetes inference gateways read.
    bool gateway_metrics = false;
  };

  // gRPC has 17 status codes; one counter for each.
  using RpcCounters = std::array<prometheus::Counter*, 17>;

  explicit PrometheusMetrics(const Options& options);

  // The counters of a method, for the length of this object.
  const RpcCounters& rpc_counters(const std::string& method) const;

  // A call that came in a phase that admits none.
  void CountRefusal(Phase phase);
  // A call without a valid token, and one beyond its client's limits.
  void CountUnauthenticated() { refused_unauthenticated_->Increment(); }
  void CountClientLimit(ClientLimit limit);
  // The engine makes no progress; see ProgressWatch.
  void CountStall() { stalls_->Increment(); }

  // Where the server is in its life, and whether its engine is alive, as tidal_server_state says:
  // loading from the start, ready, draining, or dead.
  void SetPhase(Phase phase);
  void SetAlive(bool alive);

  void SetMemory(const MemoryUse& memory);
  // Names and values of the configuration, once.
  void SetConfig(const std::map<std::string, std::string>& labels, int32_t num_blocks);
  // How long ago the engine has made progress; asked when metrics are read, until it is replaced.
  void SetProgressAge(std::function<absl::Duration()> age);

  // EngineObserver.
  void OnStep(const StepReport& report) override;
  void OnFirstToken(absl::Duration time_to_first_token) override;
  void OnInterTokenLatency(absl::Duration latency) override;
  void OnPreemption(const std::string& request_id) override;
  void OnRequestEnded(const RequestReport& report) override;
  void OnRejected(RejectionReason reason) override;
  void OnLoadChanged(const EngineLoad& load) override;
  void OnFault(const absl::Status& status) override;

  // prometheus::Collectable.
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  static constexpr size_t kNumStepKinds = 3;
  static constexpr size_t kNumStages = 3;
  static constexpr size_t kNumRejectionReasons = 5;
  static constexpr size_t kNumServerStates = 4;
  static constexpr size_t kNumEndReasons = 9;

  void CreateGauges();
  void ShowState() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CreateRpcCounters(const std::vector<std::string>& methods);
  void CreateCounters();
  void CreateHistograms();
  void CreateGatewayMetrics();

  prometheus::Registry registry_;

  prometheus::Gauge* requests_running_;
  prometheus::Gauge* requests_waiting_;
  prometheus::Gauge* waiting_prompt_tokens_;
  prometheus::Gauge* kv_cache_usage_;
  prometheus::Gauge* used_blocks_;
  prometheus::Gauge* cached_blocks_;
  prometheus::Gauge* free_blocks_;
  prometheus::Gauge* weights_bytes_;
  prometheus::Gauge* kv_cache_bytes_;
  prometheus::Gauge* workspace_bytes_;
  prometheus::Gauge* last_progress_;
  std::array<prometheus::Gauge*, kNumServerStates> server_states_;  // by ServerState

  std::map<std::string, RpcCounters> rpc_counters_;
  std::array<prometheus::Counter*, kNumEndReasons> requests_finished_;  // by EndReason
  std::array<prometheus::Counter*, kNumRejectionReasons> rejections_;   // by RejectionReason
  prometheus::Counter* refused_loading_;
  prometheus::Counter* refused_draining_;
  prometheus::Counter* refused_unauthenticated_;
  prometheus::Counter* refused_client_requests_;
  prometheus::Counter* refused_client_tokens_;
  prometheus::Counter* computed_prompt_tokens_;
  prometheus::Counter* recomputed_tokens_;
  prometheus::Counter* cached_prompt_tokens_;
  prometheus::Counter* cache_queried_tokens_;
  prometheus::Counter* cache_hit_tokens_;
  prometheus::Counter* generation_tokens_;
  prometheus::Counter* preemptions_;
  std::array<prometheus::Counter*, kNumStages> cancellations_;  // by RequestStage
  std::array<prometheus::Counter*, kNumStepKinds> steps_;       // by StepKind
  prometheus::Counter* faults_;
  prometheus::Counter* stalls_;
  prometheus::Counter* attended_tokens_;
  prometheus::Counter* available_tokens_;
  prometheus::Counter* selections_;
  prometheus::Counter* corrections_;
  prometheus::Counter* corrected_tokens_;

  prometheus::Histogram* time_to_first_token_;
  prometheus::Histogram* inter_token_latency_;
  prometheus::Histogram* e2e_latency_;
  prometheus::Histogram* queue_time_;
  prometheus::Histogram* prefill_time_;
  prometheus::Histogram* decode_time_;
  prometheus::Histogram* prompt_tokens_;
  prometheus::Histogram* request_generation_tokens_;
  std::array<prometheus::Histogram*, kNumStepKinds> step_duration_;  // by StepKind
  prometheus::Histogram* batch_size_;

  // Null without gateway_metrics.
  prometheus::Gauge* gateway_running_ = nullptr;
  prometheus::Gauge* gateway_waiting_ = nullptr;
  prometheus::Gauge* gateway_cache_usage_ = nullptr;
  const bool gateway_metrics_;

  mutable std::mutex mutex_;
  Phase phase_ ABSL_GUARDED_BY(mutex_) = Phase::kLoading;
  bool is_alive_ ABSL_GUARDED_BY(mutex_) = true;
  std::function<absl::Duration()> progress_age_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tidal::server
