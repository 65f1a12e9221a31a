#include "tools/eval_engine.h"

#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/backend_model_runner.h"
#include "engine/clock.h"

namespace tidal {
namespace {

// Hands over what one request yields, once it has ended.
class OutputCollector final : public GenerationObserver {
 public:
  std::future<absl::StatusOr<EvalOutput>> future() { return promise_.get_future(); }

  void OnStarted(const GenerationStarted& /*started*/) override {}
  void OnProgress(int32_t /*num_prefilled_tokens*/, int32_t /*num_total_tokens*/) override {}
  void OnDelta(GenerationDelta delta) override {
    output_.text += delta.text;
    for (const SampledToken& token : delta.tokens) output_.token_ids.push_back(token.token_id);
  }
  void OnFinished(const GenerationFinished& /*finished*/) override {
    promise_.set_value(std::move(output_));
  }
  void OnFailed(const absl::Status& status) override { promise_.set_value(status); }

 private:
  EvalOutput output_;  // engine thread only
  std::promise<absl::StatusOr<EvalOutput>> promise_;
};

class IgnoringObserver final : public EngineObserver {
 public:
  void OnStep(const StepReport& /*report*/) override {}
  void OnFirstToken(absl::Duration /*time_to_first_token*/) override {}
  void OnInterTokenLatency(absl::Duration /*latency*/) override {}
  void OnPreemption(const std::string& /*request_id*/) override {}
  void OnRequestEnded(const RequestReport& /*report*/) override {}
  void OnRejected(RejectionReason /*reason*/) override {}
  void OnLoadChanged(const EngineLoad& /*load*/) override {}
  void OnFault(const absl::Status& /*status*/) override {}
};

Request MakeRequest(int64_t number, const EvalRequest& eval_request) {
  Request request;
  request.id = absl::StrCat("eval-", number);
  request.prompt_token_ids = eval_request.prompt_token_ids;
  request.sampling.temperature = 0.0f;
  request.stopping.max_new_tokens = eval_request.max_new_tokens;
  request.attention = eval_request.attention;
  request.arrival_time = Clock::Monotonic()->Now();
  return request;
}

}  // namespace

void PlanSwitchingRunner::SwitchTo(const LayerPlan& plan) {
  runner_ = std::make_unique<BackendModelRunner>(backend_, plan);
}

EvalEngine::EvalEngine(ServingModel* model, int32_t max_running_requests)
    : runner_(model->backend.get(), model->plan), observer_(std::make_unique<IgnoringObserver>()) {
  constexpr int32_t kMaxQueuedRequests = 1 << 16;
  engine_ = std::make_unique<Engine>(EngineOptions{.max_model_len = model->max_model_len,
                                                   .max_batch_tokens = model->max_batch_tokens,
                                                   .max_running_requests = max_running_requests,
                                                   .max_queued_requests = kMaxQueuedRequests,
                                                   .max_queued_tokens = int64_t{1} << 40,
                                                   .num_blocks = model->num_blocks,
                                                   .eos_token_ids = model->config.eos_token_ids},
                                     model->plan, &runner_, model->tokenizer.get(),
                                     Clock::Monotonic(), observer_.get());
  engine_->Start();
}

EvalEngine::~EvalEngine() { engine_->Stop(absl::CancelledError("the measurement has ended")); }

absl::StatusOr<std::vector<EvalOutput>> EvalEngine::Generate(
    const LayerPlan& plan, const std::vector<EvalRequest>& requests) {
  // Nothing runs now, and what Submit hands over orders this before the engine's next step.
  runner_.SwitchTo(plan);
  std::vector<std::future<absl::StatusOr<EvalOutput>>> futures;
  absl::Status refusal;
  for (const EvalRequest& request : requests) {
    const auto collector = std::make_shared<OutputCollector>();
    futures.push_back(collector->future());
    refusal = engine_->Submit(MakeRequest(num_submitted_++, request), collector).status();
    if (!refusal.ok()) {
      futures.pop_back();
      break;
    }
  }
  std::vector<EvalOutput> outputs;
  for (std::future<absl::StatusOr<EvalOutput>>& future : futures) {
    absl::StatusOr<EvalOutput> output = future.get();
    if (!output.ok()) {
      refusal.Update(output.status());
      continue;
    }
    outputs.push_back(*std::move(output));
  }
  // An answer comes a little before the engine is done with the request.
  engine_->WaitUntilIdle(absl::InfiniteDuration());
  TIDAL_RETURN_IF_ERROR(refusal);
  return outputs;
}

}  // namespace tidal
