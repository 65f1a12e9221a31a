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
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/backend/status_macros.h"
#include "engine/engine.h"
#include "engine/model_loader.h"
#include "server/access_control.h"
#include "server/admin_service.h"
#include "server/call_admission.h"
#include "server/client_limits.h"
#include "server/debug_dump.h"
#include "server/drain.h"
#include "server/engine_monitor.h"
#include "server/grpc_server.h"
#include "server/health.h"
#include "server/inference_service.h"
#include "server/lifecycle.h"
#include "server/liveness_monitor.h"
#include "server/logging.h"
#include "server/metrics_endpoint.h"
#include "server/model_service.h"
#include "server/prometheus_metrics.h"
#include "server/rpc_interceptor.h"
#include "server/server_config.h"
#include "server/serving_model_state.h"
#include "server/signal_watcher.h"
#include "server/stream_watch.h"
#include "server/tls_credentials.h"
#include "server/token_file.h"
#include "server/version.h"

namespace tidal::server {
namespace {

// Who was aborted and tries again at once shall hear UNAVAILABLE; a closing gRPC server says
// CANCELLED, which nobody retries. The same again for answers on their way.
constexpr absl::Duration kCloseGrace = absl::Milliseconds(250);
// Health checks and an operator's requests hold a name, and no more.
constexpr int64_t kMaxHealthMessageBytes = 4096;
constexpr int64_t kMaxAdminMessageBytes = 4096;

// The ports that are listened on; 0 = none.
struct Ports {
  int grpc = 0;
  int metrics = 0;
  int health = 0;
  int admin = 0;
};

// One a line, for whoever started the server with port 0. Appears whole or not at all.
absl::Status WritePortFile(const std::string& path, const Ports& ports) {
  if (path.empty()) return absl::OkStatus();
  const std::string partial_path = absl::StrCat(path, ".partial");
  {
    std::ofstream file(partial_path);
    file << "listen " << ports.grpc << "\nmetrics " << ports.metrics << "\n";
    if (ports.health != 0) file << "health " << ports.health << "\n";
    if (ports.admin != 0) file << "admin " << ports.admin << "\n";
  }
  std::error_code error;
  std::filesystem::rename(partial_path, path, error);
  if (!error) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("--port_file: cannot write '", path, "': ", error.message()));
}

void LogPorts(const TransportConfig& config, const Ports& ports) {
  const char* tls = !config.tls.has_value()              ? "off"
                    : config.tls->client_ca_file.empty() ? "on"
                                                         : "mutual";
  LogFields fields = {{"port", int64_t{ports.grpc}},
                      {"metrics_port", int64_t{ports.metrics}},
                      {"tls", std::string(tls)},
                      {"tokens", std::string(config.auth_token_file.empty() ? "off" : "on")}};
  if (ports.health != 0) fields.emplace_back("health_port", int64_t{ports.health});
  if (!config.admin_address.empty()) fields.emplace_back("admin_address", config.admin_address);
  Log(LogLevel::info, absl::StrCat("listening on ", config.listen_address), fields);
}

// Everybody may call where `path`, the value of `flag`, is empty.
absl::StatusOr<std::unique_ptr<AccessControl>> OpenAccessControl(const std::string& flag,
                                                                 const std::string& path,
                                                                 absl::Duration reload_interval) {
  if (path.empty()) return std::make_unique<AccessControl>();
  TIDAL_ASSIGN_OR_RETURN(std::unique_ptr<TokenFile> tokens,
                         TokenFile::Open(flag, path, reload_interval, Clock::Monotonic()));
  return std::make_unique<AccessControl>(std::move(tokens));
}

// Null where connections are not to be encrypted.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> LoadCredentials(
    const TransportConfig& config) {
  if (!config.tls.has_value()) return nullptr;
  return CreateTlsCredentials(*config.tls, config.credential_reload_interval, Clock::Monotonic());
}

absl::StatusOr<std::unique_ptr<GrpcServer>> StartMainServer(
    const ServerConfig& config, const std::vector<grpc::Service*>& services,
    const PrometheusMetrics* metrics) {
  const TransportConfig& transport = config.transport;
  TIDAL_ASSIGN_OR_RETURN(std::shared_ptr<grpc::ServerCredentials> credentials,
                         LoadCredentials(transport));
  return GrpcServer::Start({.listen_address = transport.listen_address,
                            .credentials = std::move(credentials),
                            .max_receive_message_bytes = config.max_receive_message_bytes,
                            .connection = transport.connection,
                            .has_reflection = transport.auth_token_file.empty()},
                           services,
                           std::make_unique<RpcInterceptorFactory>(metrics, ClientMethods()));
}

// Null without --health_address.
absl::StatusOr<std::unique_ptr<GrpcServer>> StartHealthServer(const TransportConfig& config,
                                                              const PrometheusMetrics* metrics) {
  if (config.health_address.empty()) return nullptr;
  return GrpcServer::Start({.address_flag = "health_address",
                            .listen_address = config.health_address,
                            .max_receive_message_bytes = kMaxHealthMessageBytes,
                            .connection = config.connection,
                            .has_reflection = false},
                           {}, std::make_unique<RpcInterceptorFactory>(metrics, HealthMethods()));
}

// Null without --admin_address. Encrypted where it can be reached from other machines.
absl::StatusOr<std::unique_ptr<GrpcServer>> StartAdminServer(const ServerConfig& config,
                                                             grpc::Service* service,
                                                             const PrometheusMetrics* metrics) {
  const TransportConfig& transport = config.transport;
  if (transport.admin_address.empty()) return nullptr;
  std::shared_ptr<grpc::ServerCredentials> credentials;
  if (!IsLocalAddress(transport.admin_address)) {
    TIDAL_ASSIGN_OR_RETURN(credentials, LoadCredentials(transport));
  }
  return GrpcServer::Start(
      {.address_flag = "admin_address",
       .listen_address = transport.admin_address,
       .credentials = std::move(credentials),
       .max_receive_message_bytes = kMaxAdminMessageBytes,
       .connection = transport.connection,
       .has_reflection = transport.auth_token_file.empty() && transport.admin_token_file.empty()},
      {service}, std::make_unique<RpcInterceptorFactory>(metrics, AdminMethods()));
}

// From ready to the engine's end.
DrainResult ServeUntilDrained(const ServerConfig& config, Lifecycle* lifecycle, Engine* engine,
                              PrometheusMetrics* metrics, Health* health, DebugDump* debug_dump) {
  const DebugDump::Subject subject(debug_dump, engine);
  const LivenessMonitor liveness(engine, config.liveness_timeout, metrics, health);
  while (!lifecycle->WaitForEnd(absl::Hours(1))) {
  }
  if (!lifecycle->fault().ok()) health->SetAlive(false);
  const auto set_ready = [&](bool ready) {
    metrics->SetPhase(ready ? Phase::kServing : Phase::kDraining);
    health->SetReady(ready);
  };
  const auto stop_engine = [&](absl::Status reason) {
    const ExitTimer timer(config.liveness_timeout, "the engine");
    engine->Stop(std::move(reason));
  };
  return Drain({.lifecycle = lifecycle, .set_ready = set_ready, .stop_engine = stop_engine},
               {.lame_duck_interval = config.lame_duck_interval,
                .shutdown_timeout = config.shutdown_timeout});
}

absl::StatusOr<DrainResult> Serve(const ServerConfig& config) {
  const TransportConfig& transport = config.transport;
  Lifecycle lifecycle;
  DebugDump debug_dump(&lifecycle);
  const SignalWatcher signals(&lifecycle, &debug_dump);
  const auto metrics = std::make_shared<PrometheusMetrics>(PrometheusMetrics::Options{
      .methods = AllMethods(), .gateway_metrics = config.gateway_metrics});
  std::unique_ptr<MetricsEndpoint> metrics_endpoint;
  if (!config.metrics_address.empty()) {
    TIDAL_ASSIGN_OR_RETURN(metrics_endpoint,
                           MetricsEndpoint::Start(config.metrics_address, metrics));
  }

  // Calls are answered from here on: with UNAVAILABLE, until the model is loaded.
  TIDAL_ASSIGN_OR_RETURN(const std::unique_ptr<AccessControl> access,
                         OpenAccessControl("auth_token_file", transport.auth_token_file,
                                           transport.credential_reload_interval));
  TIDAL_ASSIGN_OR_RETURN(const std::unique_ptr<AccessControl> admin_access,
                         OpenAccessControl("admin_token_file", transport.admin_token_file,
                                           transport.credential_reload_interval));
  ClientLimits client_limits(transport.client_limits, Clock::Monotonic());
  const CallAdmission admission(&lifecycle, metrics.get(), access.get(), &client_limits);
  StreamWatch stream_watch(config.stalled_stream_timeout);
  InferenceServiceImpl inference_service(
      &admission, {.max_pending_response_bytes = config.max_pending_response_bytes,
                   .log_prompts = config.log_prompts,
                   .stream_watch = &stream_watch});
  ModelServiceImpl model_service(&admission);
  AdminServiceImpl admin_service(&lifecycle, metrics.get(), admin_access.get());
  EngineMonitor monitor(metrics.get(), &lifecycle);
  ServingModelState model;
  TIDAL_ASSIGN_OR_RETURN(
      const std::unique_ptr<GrpcServer> grpc_server,
      StartMainServer(config, {&inference_service, &model_service}, metrics.get()));
  TIDAL_ASSIGN_OR_RETURN(const std::unique_ptr<GrpcServer> health_server,
                         StartHealthServer(transport, metrics.get()));
  TIDAL_ASSIGN_OR_RETURN(const std::unique_ptr<GrpcServer> admin_server,
                         StartAdminServer(config, &admin_service, metrics.get()));
  Ports ports = {.grpc = grpc_server->port(),
                 .metrics = metrics_endpoint == nullptr ? 0 : metrics_endpoint->port()};
  std::vector<grpc::HealthCheckServiceInterface*> health_services = {grpc_server->health_service()};
  if (health_server != nullptr) {
    ports.health = health_server->port();
    health_services.push_back(health_server->health_service());
  }
  if (admin_server != nullptr) {
    ports.admin = admin_server->port();
    health_services.push_back(admin_server->health_service());
  }
  Health health(std::move(health_services));
  LogPorts(transport, ports);
  TIDAL_RETURN_IF_ERROR(WritePortFile(config.port_file, ports));

  TIDAL_RETURN_IF_ERROR(model.Load(config, &monitor, metrics.get()));
  lifecycle.Serve(&model.state());
  metrics->SetPhase(Phase::kServing);
  health.SetReady(true);
  Log(LogLevel::info, "serving", model.Describe());

  const DrainResult result = ServeUntilDrained(config, &lifecycle, model.state().engine,
                                               metrics.get(), &health, &debug_dump);
  metrics->SetProgressAge(nullptr);
  if (result == DrainResult::kOrderly) lifecycle.WaitForUrgency(kCloseGrace);
  grpc_server->Shutdown(result == DrainResult::kForced ? absl::ZeroDuration() : kCloseGrace);
  for (GrpcServer* server : {health_server.get(), admin_server.get()}) {
    if (server != nullptr) server->Shutdown(absl::ZeroDuration());
  }
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
