#include "server/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <sys/stat.h>

#include <chrono>

#include "absl/memory/memory.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace tidal::server {
namespace {

// What gRPC may buffer for all connections together, before it slows them down.
constexpr size_t kMaxBufferBytes = size_t{1} << 30;

void SetConnectionOptions(const ConnectionOptions& options, grpc::ServerBuilder* builder) {
  const auto set = [builder](const char* name, absl::Duration duration) {
    builder->AddChannelArgument(name, static_cast<int>(absl::ToInt64Milliseconds(duration)));
  };
  set(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, options.min_ping_interval);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  set(GRPC_ARG_KEEPALIVE_TIME_MS, options.keepalive_time);
  set(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options.keepalive_timeout);
  set(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, options.handshake_timeout);
  if (options.max_connection_age > absl::ZeroDuration()) {
    set(GRPC_ARG_MAX_CONNECTION_AGE_MS, options.max_connection_age);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(
    const GrpcServerOptions& options, const std::vector<grpc::Service*>& services,
    std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> interceptor) {
  grpc::EnableDefaultHealthCheckService(true);
  if (options.has_reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();

  grpc::ServerBuilder builder;
  int port = 0;
  const std::shared_ptr<grpc::ServerCredentials> credentials =
      options.credentials != nullptr ? options.credentials : grpc::InsecureServerCredentials();
  builder.AddListeningPort(options.listen_address, credentials, &port);
  // Otherwise a second server on the same port would take half of the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_receive_message_bytes));
  builder.SetResourceQuota(grpc::ResourceQuota("tidal-server").Resize(kMaxBufferBytes));
  SetConnectionOptions(options.connection, &builder);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  if (interceptor != nullptr) interceptors.push_back(std::move(interceptor));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  for (grpc::Service* service : services) builder.RegisterService(service);

  const bool is_unix = absl::StartsWith(options.listen_address, "unix:");
  // The umask is the whole process's, but no other thread creates files while the ports open.
  const mode_t former_umask = is_unix ? umask(0077) : 0;
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (is_unix) umask(former_umask);
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("--", options.address_flag, ": cannot listen on '",
                                               options.listen_address,
                                               "' (in use, or not an address of this machine)"));
  }
  return absl::WrapUnique(new GrpcServer(credentials, std::move(server), is_unix ? 0 : port));
}

void GrpcServer::Shutdown(absl::Duration grace) {
  server_->Shutdown(std::chrono::system_clock::now() + absl::ToChronoNanoseconds(grace));
}

}  // namespace tidal::server
