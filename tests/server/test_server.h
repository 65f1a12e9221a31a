// A whole server but for the model: real gRPC on a free port of the loopback, real engine, and a
// model runner whose tokens and pace the test decides.
#pragma once

#include <grpcpp/channel.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "engine/engine.h"
#include "server/access_control.h"
#include "server/call_admission.h"
#include "server/client_limits.h"
#include "server/engine_monitor.h"
#include "server/grpc_server.h"
#include "server/health.h"
#include "server/inference_service.h"
#include "server/lifecycle.h"
#include "server/model_service.h"
#include "server/prometheus_metrics.h"
#include "tests/engine/fake_model_runner.h"
#include "tests/engine/fake_tokenizer.h"
#include "tidal/inference/v1/inference.grpc.pb.h"
#include "tidal/inference/v1/model.grpc.pb.h"

namespace tidal::server {

// Steps wait here while it is closed. Thread-safe.
class Gate {
 public:
  // Steps run freely again.
  void Open() { SetNumAllowed(kUnlimited); }
  // No further step runs, but for those that Allow lets pass.
  void Close() { SetNumAllowed(0); }
  void Allow(int num_steps) {
    const std::lock_guard<std::mutex> lock(mutex_);
    num_allowed_ += num_steps;
    changed_.notify_all();
  }
  // Called before each step.
  void Pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++num_waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return num_allowed_ > 0; });
    --num_waiting_;
    if (num_allowed_ < kUnlimited) --num_allowed_;
  }
  // Returns when a step stands before the closed gate.
  void WaitForArrival() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return num_waiting_ > 0 && num_allowed_ == 0; });
  }

 private:
  static constexpr int kUnlimited = 1 << 30;

  void SetNumAllowed(int num_allowed) {
    const std::lock_guard<std::mutex> lock(mutex_);
    num_allowed_ = num_allowed;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  int num_allowed_ ABSL_GUARDED_BY(mutex_) = kUnlimited;
  int num_waiting_ ABSL_GUARDED_BY(mutex_) = 0;
};

struct TestServerOptions {
  EngineOptions engine = {.max_model_len = 4096,
                          .max_batch_tokens = 64,
                          .max_running_requests = 8,
                          .max_queued_requests = 64,
                          .max_queued_tokens = 1 << 20,
                          .num_blocks = 1024,
                          .eos_token_ids = {}};
  GenerateOptions generate;
  bool is_loaded = true;  // otherwise LoadModel does it
  bool listens = true;    // otherwise there is no gRPC, and no thread of its
  int64_t max_receive_message_bytes = 1 << 20;
  std::string auth_token_file;  // empty = everybody may call
  ClientLimitOptions client_limits;
};

class TestServer {
 public:
  explicit TestServer(TestServerOptions options = {});
  ~TestServer();
  TestServer(const TestServer&) = delete;
  TestServer& operator=(const TestServer&) = delete;

  void LoadModel();

  // The text that the model generates for a prompt of bytes, without any sampling.
  static std::string ExpectedText(const std::string& prompt, int num_tokens);

  std::unique_ptr<inference::v1::InferenceService::Stub> NewStub();
  // On a connection of its own, so that its flow control is its own too.
  std::unique_ptr<inference::v1::InferenceService::Stub> NewSeparateStub();
  std::unique_ptr<inference::v1::ModelService::Stub> NewModelStub();

  Gate& gate() { return gate_; }
  Engine& engine() { return engine_; }
  Lifecycle& lifecycle() { return lifecycle_; }
  const GenerateOptions& generate_options() const { return options_.generate; }
  GrpcServer& grpc_server() { return *grpc_server_; }
  PrometheusMetrics& metrics() { return metrics_; }
  // The next step fails with this, as a device would.
  void FailNextStep(absl::Status status);

  // How many calls of "InferenceService/<method>" ended with `code`.
  double NumCalls(const std::string& method, grpc::StatusCode code) const;

 private:
  void Listen();
  absl::Status BeforeStep();

  const TestServerOptions options_;
  Gate gate_;
  std::mutex mutex_;
  absl::Status next_fault_ ABSL_GUARDED_BY(mutex_);
  FakeTokenizer tokenizer_;
  FakeModelRunner runner_;
  LayerPlan plan_;
  Lifecycle lifecycle_;
  PrometheusMetrics metrics_;
  EngineMonitor monitor_;
  Engine engine_;
  ServingState state_;
  AccessControl access_;
  ClientLimits client_limits_;
  CallAdmission admission_;
  InferenceServiceImpl inference_service_;
  ModelServiceImpl model_service_;
  std::unique_ptr<GrpcServer> grpc_server_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace tidal::server
