#include "server/rpc_interceptor.h"

#include <google/protobuf/descriptor.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/status_mapping.h"
#include "tidal/inference/v1/admin.pb.h"
#include "tidal/inference/v1/inference.pb.h"
#include "tidal/inference/v1/model.pb.h"

namespace tidal::server {
namespace {

using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::InterceptorBatchMethods;

constexpr char kReflectionMethod[] =
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

class RpcInterceptor : public grpc::experimental::Interceptor {
 public:
  RpcInterceptor(const PrometheusMetrics::RpcCounters* counters, bool is_served)
      : counters_(counters), is_served_(is_served) {}

  void Intercept(InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      grpc::Status status = methods->GetSendStatus();
      // Of a method that is served, only gRPC's own answer to what it cannot parse has no message.
      if (is_served_ && status.error_code() == grpc::StatusCode::UNIMPLEMENTED &&
          status.error_message().empty()) {
        status = ToGrpcStatus(absl::InvalidArgumentError(
            "the request cannot be parsed: it is malformed, or a text in it is not UTF-8"));
        methods->ModifySendStatus(status);
      }
      const auto code = static_cast<size_t>(status.error_code());
      if (code < counters_->size()) (*counters_)[code]->Increment();
    }
    methods->Proceed();
  }

 private:
  const PrometheusMetrics::RpcCounters* counters_;
  const bool is_served_;
};

void AppendMethods(const google::protobuf::ServiceDescriptor* service,
                   std::vector<std::string>* methods) {
  for (int i = 0; i < service->method_count(); ++i) {
    methods->push_back(absl::StrCat(service->full_name(), "/", service->method(i)->name()));
  }
}

}  // namespace

std::vector<std::string> HealthMethods() {
  return {"grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"};
}

std::vector<std::string> ClientMethods() {
  std::vector<std::string> methods = HealthMethods();
  methods.emplace_back(kReflectionMethod);
  AppendMethods(
      inference::v1::GenerateRequest::descriptor()->file()->FindServiceByName("InferenceService"),
      &methods);
  AppendMethods(
      inference::v1::GetModelInfoRequest::descriptor()->file()->FindServiceByName("ModelService"),
      &methods);
  return methods;
}

std::vector<std::string> AdminMethods() {
  std::vector<std::string> methods = HealthMethods();
  methods.emplace_back(kReflectionMethod);
  AppendMethods(
      inference::v1::DrainRequest::descriptor()->file()->FindServiceByName("AdminService"),
      &methods);
  return methods;
}

std::vector<std::string> AllMethods() {
  std::vector<std::string> methods = ClientMethods();
  AppendMethods(
      inference::v1::DrainRequest::descriptor()->file()->FindServiceByName("AdminService"),
      &methods);
  return methods;
}

RpcInterceptorFactory::RpcInterceptorFactory(const PrometheusMetrics* metrics,
                                             const std::vector<std::string>& served_methods)
    : metrics_(metrics), served_methods_(served_methods.begin(), served_methods.end()) {}

grpc::experimental::Interceptor* RpcInterceptorFactory::CreateServerInterceptor(
    grpc::experimental::ServerRpcInfo* rpc) {
  const std::string method(absl::StripPrefix(rpc->method(), "/"));
  const bool is_served = served_methods_.contains(method);
  return new RpcInterceptor(&metrics_->rpc_counters(method), is_served);  // gRPC takes it over
}

}  // namespace tidal::server
