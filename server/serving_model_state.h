// The loaded model, the engine on it, and what calls need of both: everything that comes to be once
// loading is done. Main's thread only, but for state().
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "engine/engine_observer.h"
#include "engine/model_loader.h"
#include "server/logging.h"
#include "server/prometheus_metrics.h"
#include "server/server_config.h"
#include "server/serving_state.h"

namespace tidal::server {

// The default attention for a model: the scope's default depends on its heads, and a model without
// sparse layers runs full.
AttentionOptions ResolveAttention(const AttentionConfig& config, const ModelShape& shape,
                                  const LayerPlan& plan);

class ServingModelState {
 public:
  ServingModelState() = default;
  ServingModelState(const ServingModelState&) = delete;
  ServingModelState& operator=(const ServingModelState&) = delete;

  // Loads the model, which may take minutes, and starts the engine. Once. `observer` and `metrics`
  // must outlive this object.
  absl::Status Load(const ServerConfig& config, EngineObserver* observer,
                    PrometheusMetrics* metrics);

  // Valid once loaded. Any thread.
  const ServingState& state() const { return state_; }

  // What the log says when serving begins.
  LogFields Describe() const;

 private:
  void ExportMetrics(const ServerConfig& config, const EngineOptions& options,
                     PrometheusMetrics* metrics) const;

  std::optional<ServingModel> model_;
  std::unique_ptr<Engine> engine_;  // on model_
  ServingState state_;
};

}  // namespace tidal::server
