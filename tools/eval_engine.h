// The engine in process for measurements: greedy requests of several layer plans on one KV cache,
// so that prompts are computed once and found again under each plan. Prefill is full attention
// whatever the plan, so nothing that is shared depends on it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/engine_observer.h"
#include "engine/layer_plan.h"
#include "engine/model_loader.h"
#include "engine/model_runner.h"

namespace tidal {

// Launches steps by one of several plans. SwitchTo may be called where no request is live: then
// nothing is launched, though what was may still be collected.
class PlanSwitchingRunner final : public ModelRunner {
 public:
  PlanSwitchingRunner(Backend* backend, const LayerPlan& plan) : backend_(backend) {
    SwitchTo(plan);
  }

  void SwitchTo(const LayerPlan& plan);

  absl::Status BindSampler(int32_t slot, const SamplingParams& params,
                           absl::Span<const int32_t> prompt_token_ids,
                           absl::Span<const int32_t> generated_token_ids) override {
    return backend_->BindSampler(slot, params, prompt_token_ids, generated_token_ids);
  }
  absl::Status Launch(const StepBatch& batch) override { return runner_->Launch(batch); }
  absl::Status Collect(std::vector<SampledToken>* sampled) override {
    return backend_->EndStep(sampled);
  }
  absl::Status CheckAttention(AttentionMode mode, const Selection& selection) const override {
    return backend_->CheckAttention(mode, selection);
  }
  int32_t max_steps_in_flight() const override { return backend_->max_steps_in_flight(); }

 private:
  Backend* backend_;
  std::unique_ptr<ModelRunner> runner_;
};

struct EvalRequest {
  std::vector<int32_t> prompt_token_ids;
  AttentionOptions attention;
  int32_t max_new_tokens = 0;
};

struct EvalOutput {
  std::vector<int32_t> token_ids;
  std::string text;
};

class EvalEngine {
 public:
  // `model`, which has a tokenizer, must outlive this object; at most `max_running_requests` run
  // together.
  EvalEngine(ServingModel* model, int32_t max_running_requests);
  ~EvalEngine();

  // Runs the requests together under `plan`; their outputs, in order. RESOURCE_EXHAUSTED or
  // INVALID_ARGUMENT as Engine::Submit; any error ends them all.
  absl::StatusOr<std::vector<EvalOutput>> Generate(const LayerPlan& plan,
                                                   const std::vector<EvalRequest>& requests);

 private:
  PlanSwitchingRunner runner_;
  std::unique_ptr<EngineObserver> observer_;
  std::unique_ptr<Engine> engine_;
  int64_t num_submitted_ = 0;
};

}  // namespace tidal
