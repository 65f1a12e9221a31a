// tidal-server: loads one model and serves it over gRPC until it is told to stop.
//
// Exit status: 0 for an orderly end, 1 where it could not start or the engine failed, 2 where a
// second signal cut draining short.

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/backend/status_macros.h"
#include "engine/engine.h"
#include "engine/model_loader.h"
#include "server/drain.h"
#include "server/engine_monitor.h"
#include "server/grpc_server.h"
#include "server/health.h"
#include "server/inference_service.h"
#include "server/lifecycle.h"
#include "server/logging.h"
#include "server/metrics_endpoint.h"
#include "server/model_service.h"
#include "server/prometheus_metrics.h"
#include "server/rpc_interceptor.h"
#include "server/server_config.h"
#include "server/serving_model_state.h"
#include "server/signal_watcher.h"
#include "server/version.h"

namespace tidal::server {
namespace {

// How often liveness is looked at.
constexpr absl::Duration kLivenessInterval = absl::Seconds(2);
// Who was aborted and tries again at once shall hear UNAVAILABLE; a closing gRPC server says
// CANCELLED, which nobody retries. The same again for answers on their way.
constexpr absl::Duration kCloseGrace = absl::Milliseconds(250);

// Both ports, one a line, for whoever started the server with port 0. Appears whole or not at all.
absl::Status WritePortFile(const std::string& path, int port, int metrics_port) {
  if (path.empty()) return absl::OkStatus();
  const std::string partial_path = absl::StrCat(path, ".partial");
  std::ofstream(partial_path) << "listen " << port << "\nmetrics " << metrics_port << "\n";
  std::error_code error;
  std::filesystem::rename(partial_path, path, error);
  if (!error) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("--port_file: cannot write '", path, "': ", error.message()));
}

// Until a signal or a fault: liveness follows the engine's progress.
void WatchUntilEnd(Lifecycle* lifecycle, const Engine& engine, absl::Duration liveness_timeout,
                   PrometheusMetrics* metrics, Health* health) {
  ProgressWatch watch(liveness_timeout);
  bool was_alive = true;
  while (!lifecycle->WaitForEnd(kLivenessInterval)) {
    const bool is_alive =
        watch.IsAlive(Clock::Monotonic()->Now(), engine.load(), engine.last_progress());
    if (is_alive != was_alive) {
      Log(is_alive ? LogLevel::info : LogLevel::err,
          is_alive ? "the engine makes progress again" : "the engine makes no progress");
      if (!is_alive) metrics->CountStall();
      health->SetAlive(is_alive);
    }
    was_alive = is_alive;
  }
}

absl::StatusOr<DrainResult> Serve(const ServerConfig& config) {
  Lifecycle lifecycle;
  const SignalWatcher signals(&lifecycle);
  const auto metrics = std::make_shared<PrometheusMetrics>(PrometheusMetrics::Options{
      .methods = ServedMethods(), .gateway_metrics = config.gateway_metrics});
  std::unique_ptr<MetricsEndpoint> metrics_endpoint;
  if (!config.metrics_address.empty()) {
    TIDAL_ASSIGN_OR_RETURN(metrics_endpoint,
                           MetricsEndpoint::Start(config.metrics_address, metrics));
  }
  const int metrics_port = metrics_endpoint == nullptr ? 0 : metrics_endpoint->port();

  // Calls are answered from here on: with UNAVAILABLE, until the model is loaded.
  InferenceServiceImpl inference_service(
      &lifecycle, metrics.get(),
      {.max_pending_response_bytes = config.max_pending_response_bytes,
       .log_prompts = config.log_prompts});
  ModelServiceImpl model_service(&lifecycle, metrics.get());
  EngineMonitor monitor(metrics.get(), &lifecycle);
  ServingModelState model;
  TIDAL_ASSIGN_OR_RETURN(
      const std::unique_ptr<GrpcServer> grpc_server,
      GrpcServer::Start({.listen_address = config.listen_address,
                         .max_receive_message_bytes = config.max_receive_message_bytes},
                        {&inference_service, &model_service},
                        std::make_unique<RpcInterceptorFactory>(metrics.get())));
  Health health(grpc_server->health_service());
  Log(LogLevel::info, absl::StrCat("listening on ", config.listen_address),
      {{"port", int64_t{grpc_server->port()}}, {"metrics_port", int64_t{metrics_port}}});
  TIDAL_RETURN_IF_ERROR(WritePortFile(config.port_file, grpc_server->port(), metrics_port));

  TIDAL_RETURN_IF_ERROR(model.Load(config, &monitor, metrics.get()));
  lifecycle.Serve(&model.state());
  health.SetReady(true);
  Log(LogLevel::info, "serving", model.Describe());

  WatchUntilEnd(&lifecycle, *model.state().engine, config.liveness_timeout, metrics.get(), &health);
  if (!lifecycle.fault().ok()) health.SetAlive(false);
  const DrainResult result =
      Drain({.lifecycle = &lifecycle,
             .set_ready = [&health](bool ready) { health.SetReady(ready); },
             .stop_engine =
                 [&model](absl::Status reason) { model.state().engine->Stop(std::move(reason)); }},
            {.lame_duck_interval = config.lame_duck_interval,
             .shutdown_timeout = config.shutdown_timeout});
  metrics->SetProgressAge(nullptr);
  if (result == DrainResult::kOrderly) lifecycle.WaitForUrgency(kCloseGrace);
  grpc_server->Shutdown(result == DrainResult::kForced ? absl::ZeroDuration() : kCloseGrace);
  return result;
}

int Run(int argc, char** argv) {
  const absl::StatusOr<ServerConfig> config = ParseServerConfig(argc, argv);
  if (!config.ok()) {
    std::fprintf(stderr, "tidal-server: %s\n", std::string(config.status().message()).c_str());
    return EXIT_FAILURE;
  }
  InitLogging(config->log);
  Log(LogLevel::info, "tidal-server starts",
      {{"version", std::string(kServerVersion)}, {"model_path", config->model.model_path}});
  const absl::StatusOr<DrainResult> result = Serve(*config);
  if (!result.ok()) {
    Log(LogLevel::err, "cannot serve", {{"error", std::string(result.status().message())}});
    return EXIT_FAILURE;
  }
  Log(LogLevel::info, "stopped");
  switch (*result) {
    case DrainResult::kOrderly:
      return EXIT_SUCCESS;
    case DrainResult::kForced:
      return 2;
    case DrainResult::kFault:
      return EXIT_FAILURE;
  }
  return EXIT_FAILURE;
}

}  // namespace
}  // namespace tidal::server

int main(int argc, char** argv) { return tidal::server::Run(argc, argv); }
