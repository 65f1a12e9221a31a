// The layer loop: runs a step's stages on a backend, layer by layer, as the layer plan says. Engine
// thread only.
#pragma once

#include <vector>

#include "engine/backend/backend.h"
#include "engine/layer_plan.h"
#include "engine/model_runner.h"

namespace tidal {

class BackendModelRunner : public ModelRunner {
 public:
  // `backend` has its weights and KV cache, and outlives this object.
  BackendModelRunner(Backend* backend, LayerPlan plan);

  absl::Status BindSampler(int32_t slot, const SamplingParams& params,
                           absl::Span<const int32_t> prompt_token_ids,
                           absl::Span<const int32_t> generated_token_ids) override;
  absl::Status Launch(const StepBatch& batch) override;
  absl::Status Collect(std::vector<SampledToken>* sampled) override;
  absl::Status CheckAttention(AttentionMode mode, const Selection& selection) const override {
    return backend_->CheckAttention(mode, selection);
  }
  int32_t max_steps_in_flight() const override { return backend_->max_steps_in_flight(); }

 private:
  Backend* const backend_;
  const LayerPlan plan_;
};

}  // namespace tidal
