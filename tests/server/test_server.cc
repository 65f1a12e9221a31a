#include "tests/server/test_server.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "server/rpc_interceptor.h"

namespace tidal::server {
namespace {

constexpr int kNumLayers = 8;
constexpr int kVocabSize = 256;

// A small letter that depends on the whole history.
int32_t NextLetter(const std::vector<int32_t>& history) {
  return 'a' + FakeModelRunner::HashOfHistory(history, 26);
}

// Null where `path` is empty.
std::unique_ptr<TokenFile> OpenTokens(const std::string& path) {
  if (path.empty()) return nullptr;
  absl::StatusOr<std::unique_ptr<TokenFile>> tokens =
      TokenFile::Open("auth_token_file", path, absl::Seconds(1), Clock::Monotonic());
  TIDAL_CHECK(tokens.ok(), "the test's tokens can be read");
  return *std::move(tokens);
}

LayerPlan DefaultPlan() { return *LayerPlan::Create(kNumLayers, LayerPlanOptions{}); }

}  // namespace

TestServer::TestServer(TestServerOptions options)
    : options_(std::move(options)),
      tokenizer_(FakeTokenizer::OfBytes()),
      runner_(options_.engine.num_blocks, &NextLetter),
      plan_(DefaultPlan()),
      metrics_({.methods = ClientMethods()}),
      monitor_(&metrics_, &lifecycle_),
      engine_(options_.engine, plan_, &runner_, &tokenizer_, Clock::Monotonic(), &monitor_),
      access_(OpenTokens(options_.auth_token_file)),
      client_limits_(options_.client_limits, Clock::Monotonic()),
      admission_(&lifecycle_, &metrics_, &access_, &client_limits_),
      inference_service_(&admission_, options_.generate),
      model_service_(&admission_) {
  runner_.set_on_launch([this](const StepBatch&) { return BeforeStep(); });
  if (options_.listens) Listen();
  if (options_.is_loaded) LoadModel();
}

void TestServer::Listen() {
  absl::StatusOr<std::unique_ptr<GrpcServer>> server =
      GrpcServer::Start({.listen_address = "127.0.0.1:0",
                         .max_receive_message_bytes = options_.max_receive_message_bytes},
                        {&inference_service_, &model_service_},
                        std::make_unique<RpcInterceptorFactory>(&metrics_, ClientMethods()));
  TIDAL_CHECK(server.ok(), "the loopback has a free port");
  grpc_server_ = *std::move(server);
  channel_ = grpc::CreateChannel(absl::StrCat("127.0.0.1:", grpc_server_->port()),
                                 grpc::InsecureChannelCredentials());
}

TestServer::~TestServer() {
  gate_.Open();
  engine_.Stop(absl::UnavailableError("the test is over"));
  if (grpc_server_ != nullptr) grpc_server_->Shutdown(absl::ZeroDuration());
}

void TestServer::LoadModel() {
  AttentionOptions attention{.mode = AttentionMode::kTidal,
                             .selection = {.scope = SelectionScope::kKvHead, .token_budget = 32}};
  state_ = {.engine = &engine_,
            .plan = &plan_,
            .tokenizer = &tokenizer_,
            .clock = Clock::Monotonic(),
            .validation = {.tokenizer = &tokenizer_,
                           .vocab_size = kVocabSize,
                           .max_request_tokens = engine_.max_request_tokens(),
                           .max_text_bytes = MaxTextBytes(tokenizer_, engine_.max_request_tokens()),
                           .default_attention = attention,
                           .has_sparse_layers = true},
            .model_info = {}};
  state_.model_info.set_model_name("fake");
  engine_.Start();
  lifecycle_.Serve(&state_);
}

std::string TestServer::ExpectedText(const std::string& prompt, int num_tokens) {
  std::vector<int32_t> history;
  for (const char c : prompt) history.push_back(static_cast<unsigned char>(c));
  std::string text;
  for (int i = 0; i < num_tokens; ++i) {
    history.push_back(NextLetter(history));
    text.push_back(static_cast<char>(history.back()));
  }
  return text;
}

std::unique_ptr<inference::v1::InferenceService::Stub> TestServer::NewStub() {
  return inference::v1::InferenceService::NewStub(channel_);
}

std::unique_ptr<inference::v1::InferenceService::Stub> TestServer::NewSeparateStub() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return inference::v1::InferenceService::NewStub(
      grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", grpc_server_->port()),
                                grpc::InsecureChannelCredentials(), arguments));
}

std::unique_ptr<inference::v1::ModelService::Stub> TestServer::NewModelStub() {
  return inference::v1::ModelService::NewStub(channel_);
}

void TestServer::FailNextStep(absl::Status status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  next_fault_ = std::move(status);
}

double TestServer::NumCalls(const std::string& method, grpc::StatusCode code) const {
  return metrics_
      .rpc_counters(
          absl::StrCat("tidal.inference.v1.InferenceService/", method))[static_cast<size_t>(code)]
      ->Value();
}

absl::Status TestServer::BeforeStep() {
  gate_.Pass();
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(next_fault_, absl::OkStatus());
}

}  // namespace tidal::server
